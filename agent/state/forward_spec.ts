/** What users say about forwards and open ports, as values: from the command line and the local API to whoever carries them out. */

export interface ForwardSpec {
  readonly protocol: "tcp" | "udp";
  /** The local ip and port to listen on; port 0: any. */
  readonly bind: string;
  readonly port: number;
  /** A peer's name, id or mesh address, and its port. */
  readonly peer: string;
  readonly peerPort: number;
}

export interface ListenSpec {
  readonly bind: string;
  readonly port: number;
}

/** Ports of this machine that are open to the mesh. */
export type ExposedPorts = readonly number[] | "all";
