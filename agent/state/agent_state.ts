/** Everything of the state directory, opened together under its lock, in the order in which a broken part is best reported. */
import { HandshakeClock } from "./handshake_clock.ts";
import { type Identity, openIdentity } from "./identity.ts";
import { lockStateDir } from "./state_dir.ts";
import { StateFile } from "./state_file.ts";
import { TrustStore } from "./trust_store.ts";

export interface AgentState {
  readonly dir: string;
  readonly identity: Identity;
  readonly file: StateFile;
  readonly trust: TrustStore;
  readonly handshakeClock: HandshakeClock;
  /** Flushes and gives the lock back. Nothing here may be used afterwards. */
  close(): void;
}

/** @param onWriteError told of background writes that failed, for the log */
export function openAgentState(dir: string, unixMs: () => number, onWriteError: (error: unknown) => void): AgentState {
  const lock = lockStateDir(dir);
  try {
    const file = new StateFile(dir);
    const identity = openIdentity(dir, file.value.joined);
    const trust = new TrustStore(dir);
    const handshakeClock = new HandshakeClock(dir, unixMs(), onWriteError);
    return {
      dir,
      identity,
      file,
      trust,
      handshakeClock,
      close: () => {
        handshakeClock.flush(unixMs());
        lock.release();
      },
    };
  } catch (error) {
    lock.release();
    throw error;
  }
}
