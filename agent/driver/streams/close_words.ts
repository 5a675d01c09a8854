/** Why a stream ended, for people. */
import { assertNever } from "../../../shared/assert.ts";
import type { CloseCode } from "../../overlay/contract.ts";
import type { ProxyOutcome } from "../../overlay/proxy_request.ts";
import { EXIT, UserError } from "../../state/user_error.ts";

export function closeWords(code: CloseCode, peer: string, port: number): string {
  switch (code) {
    case "cancelled":
      return `The connection to port ${port} of "${peer}" was reset by the other side`;
    case "refused":
      return `Connection refused: nothing listens on port ${port} of "${peer}"`;
    case "not_exposed":
      return `"${peer}" does not offer port ${port} to the mesh; start its agent with "--expose ${port}" if it should`;
    case "unreachable":
      return `Port ${port} of "${peer}" does not answer`;
    case "overloaded":
      return `"${peer}" takes no more connections at this moment; try again later`;
    case "stopping":
      return `The agent of "${peer}" has stopped`;
    case "silent":
      return `"${peer}" has not answered for 30 seconds; "tunnelmesh-agent why ${peer}" says more`;
    case "restarted":
      return `The agent of "${peer}" has restarted, which ends its connections`;
    case "broken":
      return `"${peer}" broke the protocol, so its connections were ended; it may run another version`;
    default:
      return assertNever(code);
  }
}

export function closeError(code: CloseCode, peer: string, port: number): UserError {
  const isPeer = code === "silent" || code === "stopping" || code === "restarted";
  return new UserError(isPeer ? EXIT.peerUnavailable : EXIT.failed, closeWords(code, peer, port));
}

export function proxyOutcome(code: CloseCode): ProxyOutcome {
  switch (code) {
    case "refused":
    case "not_exposed":
    case "unreachable":
      return code;
    case "silent":
      return "unreachable";
    default:
      return "failed";
  }
}
