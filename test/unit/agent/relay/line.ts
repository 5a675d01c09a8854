/** A line between an agent and the coordinator: a TCP proxy on loopback that can be made slow on the way up, or fall silent without a word. */
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

/** Slices of this length: what a slow line would deliver in one piece. */
const SLICE_MS = 5;

export class Line {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #mute = new WeakSet<Socket>();

  /** @param bytesPerSecond on the way up; undefined: as fast as loopback */
  static async to(port: number, bytesPerSecond?: number): Promise<Line> {
    const line = new Line(port, bytesPerSecond);
    await new Promise<void>((resolve) => line.#server.listen(0, "127.0.0.1", resolve));
    return line;
  }

  private constructor(port: number, bytesPerSecond: number | undefined) {
    this.#server = createServer((client) => {
      const server = connect(port, "127.0.0.1");
      for (const socket of [client, server]) {
        this.#sockets.add(socket);
        socket.setNoDelay(true);
        socket.on("error", () => socket.destroy());
      }
      server.on("data", (bytes: Buffer) => {
        if (!this.#mute.has(server)) client.write(bytes);
      });
      client.on("data", (bytes: Buffer) => {
        if (this.#mute.has(client)) return;
        if (bytesPerSecond === undefined) server.write(bytes);
        else void this.#slowly(client, server, bytes, bytesPerSecond);
      });
      client.on("close", () => server.destroy());
      server.on("close", () => client.destroy());
    });
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Nothing passes any more on what is open, and nobody is told. */
  mute(): void {
    for (const socket of this.#sockets) this.#mute.add(socket);
  }

  /** As when one end has forgotten the connections. */
  reset(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  /** What comes down on what is open now waits for so long. */
  hold(milliseconds: number): void {
    for (const socket of this.#sockets) socket.pause();
    const held = [...this.#sockets];
    setTimeout(() => {
      for (const socket of held) socket.resume();
    }, milliseconds);
  }

  close(): void {
    this.#server.close();
    this.reset();
  }

  /** Meanwhile what follows waits in the kernel, as it does behind a slow line. */
  async #slowly(client: Socket, server: Socket, bytes: Buffer, bytesPerSecond: number): Promise<void> {
    client.pause();
    const startedAt = performance.now();
    const slice = Math.ceil((bytesPerSecond * SLICE_MS) / 1000);
    for (let at = 0; at < bytes.length; at += slice) {
      const dueAt = startedAt + ((at + slice) / bytesPerSecond) * 1000;
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, dueAt - performance.now())));
      server.write(bytes.subarray(at, at + slice));
    }
    client.resume();
  }
}
