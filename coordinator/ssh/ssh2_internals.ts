/**
 * The three things that ssh2 1.17.0 has no public way for. Pinned to that version; ssh_server.test.ts watches that each still works.
 */
import type { Connection } from "ssh2";

interface Protocol {
  channelOpenFail?: (recipient: number, reason: number, description?: string) => void;
  _kexinit?: unknown;
}

const protocolOf = (connection: Connection): Protocol | undefined =>
  (connection as unknown as { _protocol?: Protocol })._protocol;

/** RFC 4254 §5.1. */
const ADMINISTRATIVELY_PROHIBITED = 1;

/**
 * Refusals of channels get a reason and words: ssh2 sends "connect failed" and an empty description.
 * `reason` is asked for at each refusal.
 */
export function explainRefusals(connection: Connection, reason: () => string): void {
  const protocol = protocolOf(connection);
  const send = protocol?.channelOpenFail;
  if (protocol === undefined || send === undefined) return;
  protocol.channelOpenFail = (recipient) => send.call(protocol, recipient, ADMINISTRATIVELY_PROHIBITED, reason());
}

/** While keys are exchanged ssh2 queues without limit, and its channels take everything. */
export const isExchangingKeys = (connection: Connection): boolean => protocolOf(connection)?._kexinit !== undefined;

/** A channel whose last write waits for the client's window. */
export const isWaitingForWindow = (channel: object): boolean =>
  (channel as { _waitWindow?: boolean })._waitWindow === true;
