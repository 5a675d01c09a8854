/** What the running agent tells about itself (mesh_agent.ts). */

export interface SelfView {
  readonly name: string | undefined;
  readonly meshIPv4: string | undefined;
  readonly meshIPv6: string | undefined;
  readonly tun: string | undefined;
  readonly connected: boolean;
  readonly rttMs: number | undefined;
  /** What is wrong, or what is waited for, while not joined. */
  readonly message: string | undefined;
}

export interface EchoResult {
  readonly sequence: number;
  readonly roundTripMs: number;
  readonly path: "direct" | "ssh" | "websocket";
}
