/** The exit code of an agent that the coordinator has refused, by reason. */
import type { Refusal } from "../../shared/signal/messages.ts";
import { EXIT, type ExitCode } from "../state/user_error.ts";

export const REFUSAL_EXIT: Readonly<Record<Refusal, ExitCode>> = {
  key_invalid: EXIT.keyRefused,
  key_expired: EXIT.keyRefused,
  removed: EXIT.keyRefused,
  identity_invalid: EXIT.keyRefused,
  name_taken: EXIT.badConfiguration,
  name_invalid: EXIT.badConfiguration,
  version: EXIT.failed,
  replaced: EXIT.failed,
  full: EXIT.failed,
};
