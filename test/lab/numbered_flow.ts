/** Numbered packets through the overlay, from one agent's machine to another's, while something happens to the path (flow.ts). */
import { fileURLToPath } from "node:url";
import type { FlowAccount } from "./flow.ts";
import type { MeshAgent } from "./mesh.ts";

const FLOW = fileURLToPath(new URL("flow.ts", import.meta.url));
const PORT = 5201;
/** Packets a second unless told otherwise. */
const BYTES = 200;
const PER_SECOND = 1000;
const START_TIMEOUT_MS = 5000;
/** Of a flow that ends with what happens meanwhile: any test is over by then; and what follows a move shows in so much more of it. */
const LONGEST_SECONDS = 60;
const AFTERWARDS_MS = 500;
/** Beyond the flow's own length. */
const END_TIMEOUT_MS = 15_000;
/** What may still be on its way when the sender ends: longer than any reorder buffer holds. */
const LINGER_MS = 600;

export interface FlowReport {
  readonly account: FlowAccount;
  readonly sent: number;
  readonly lost: number;
}

/**
 * Runs `during` while packets flow.
 *
 * @param seconds so long they flow, whatever `during` takes; undefined: until it has ended, and a moment longer
 */
export async function withFlow(
  from: MeshAgent,
  to: MeshAgent,
  seconds: number | undefined,
  during: () => Promise<void>,
  options: { readonly perSecond?: number; readonly port?: number; readonly bytes?: number } = {},
): Promise<FlowReport> {
  const { perSecond = PER_SECOND, port = PORT, bytes = BYTES } = options;
  const { meshIPv4 } = (await to.status()).self;
  const receiver = to.host.spawn([process.execPath, FLOW, "receive", `${port}`]);
  await receiver.waitFor("receiver", ({ text }) => (text === "ready" ? true : undefined), START_TIMEOUT_MS);
  const sender = from.host.spawn([
    process.execPath,
    FLOW,
    "send",
    meshIPv4,
    `${port}`,
    `${perSecond}`,
    `${seconds ?? LONGEST_SECONDS}`,
    `${bytes}`,
  ]);
  await during();
  if (seconds === undefined) {
    await sleep(AFTERWARDS_MS);
    sender.closeInput();
  }
  const { sent } = await sender.waitFor(
    "sender",
    ({ text }) => (text.startsWith("{") ? (JSON.parse(text) as { sent: number }) : undefined),
    (seconds ?? 0) * 1000 + END_TIMEOUT_MS,
  );
  await sleep(LINGER_MS);
  receiver.closeInput();
  const account = await receiver.waitFor(
    "account",
    ({ text }) => (text.startsWith("{") ? (JSON.parse(text) as FlowAccount) : undefined),
    START_TIMEOUT_MS,
  );
  return { account, sent, lost: sent - account.received };
}

/** What a move that loses, repeats and reorders nothing leaves at zero. */
export const faults = ({ account, lost }: FlowReport): { lost: number; duplicated: number; reordered: number } => ({
  lost,
  duplicated: account.duplicated,
  reordered: account.reordered,
});

export const NO_FAULTS = { lost: 0, duplicated: 0, reordered: 0 } as const;

/** For the log. */
export const tellFlow = ({ account, lost, sent }: FlowReport): string =>
  `${sent} sent, ${lost} lost, ${account.duplicated} duplicated, ${account.reordered} reordered, longest gap ${account.longestGapMs.toFixed(0)} ms, longest delay ${account.longestDelayMs.toFixed(0)} ms`;

export async function sleep(milliseconds: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, milliseconds));
}
