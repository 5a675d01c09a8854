/**
 * A second WebSocket to the coordinator, opened while the first has not answered a challenge: if that is dead, two round trips are saved,
 * and that the second opens says that the network works. Nothing is said on it until it is taken, so the coordinator knows of nobody.
 */
import { openWebSocket, type WebSocketOptions } from "./bun_websocket.ts";

export class SpareSocket {
  #socket: WebSocket | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** Opens after so long, unless it is closed before. */
  openAfter(milliseconds: number, url: string, options: () => WebSocketOptions, onOpen: () => void): void {
    this.close();
    this.#timer = setTimeout(() => {
      const socket = openWebSocket(url, options());
      this.#socket = socket;
      socket.onopen = onOpen;
      socket.onclose = () => {
        if (this.#socket === socket) this.#socket = undefined;
      };
    }, milliseconds);
  }

  /** Open, or still being opened; whoever takes it listens to it from here on. */
  take(): WebSocket | undefined {
    const socket = this.#socket;
    this.#socket = undefined;
    clearTimeout(this.#timer);
    if (socket !== undefined) {
      socket.onopen = null;
      socket.onclose = null;
    }
    return socket;
  }

  close(): void {
    this.take()?.close();
  }
}
