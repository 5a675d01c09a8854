/**
 * Who we are to the coordinator and who it is to us: the hello, the fingerprint that is pinned at first contact, and what is kept on the
 * disk once it has let us in.
 */
import { randomInt } from "node:crypto";
import { groupFingerprint } from "../../shared/session/identity.ts";
import { FEATURES } from "../../shared/session/peer_session.ts";
import { type Hello, PROTOCOL_VERSION } from "../../shared/signal/messages.ts";
import type { AgentConfig } from "../cli/config.ts";
import { EXIT, UserError } from "../state/user_error.ts";
import type { SelfView } from "./self_view.ts";

export class Enrolment {
  readonly #config: AgentConfig;
  /** Tells this process from another one with a copy of the same state. */
  readonly #instance = randomInt(1, 2 ** 47);
  #firstFingerprint: string | undefined;

  constructor(config: AgentConfig) {
    this.#config = config;
  }

  hello(): Hello {
    const { state, name, joinKey, version } = this.#config;
    const { identity } = state;
    return {
      version: PROTOCOL_VERSION,
      features: FEATURES,
      identity: identity.identityKey.publicKey,
      signature: identity.sessionKeySignature,
      name: name.text,
      nameIsExplicit: name.explicit,
      ...(joinKey === undefined ? {} : { key: joinKey.text }),
      software: `tunnelmesh-agent ${version}`,
      instance: this.#instance,
    };
  }

  /** The pinned coordinator, or at the very first contact without a key whichever it is: shown to the user, and pinned on joining. */
  accept(fingerprint: string): boolean {
    const expected = this.#expected;
    if (expected !== undefined) return expected === fingerprint;
    if (this.#firstFingerprint === undefined) {
      this.#config.log.info(`First contact: the coordinator's fingerprint is ${groupFingerprint(fingerprint)}`);
    }
    this.#firstFingerprint ??= fingerprint;
    return this.#firstFingerprint === fingerprint;
  }

  /** Why the agent stops at a coordinator that it does not accept. */
  wrongCoordinator(fingerprint: string): UserError {
    return new UserError(
      EXIT.keyRefused,
      `${this.#config.coordinatorUrl} is not the coordinator that this machine knows: its fingerprint is ${groupFingerprint(fingerprint)}, expected ${groupFingerprint(this.#expected ?? "")}; check the URL, or join it with a key of its own and another --state-dir`,
    );
  }

  /** @param listeners where else the coordinator can be reached */
  saveJoined(self: SelfView, listeners: readonly string[]): void {
    const { state, coordinatorUrl, coordinatorFingerprint } = this.#config;
    const fingerprint = state.file.value.coordinator?.fingerprint ?? coordinatorFingerprint ?? this.#firstFingerprint;
    // The mesh works without; the next start will need it, so the user should know now.
    this.#orWarn(() =>
      state.file.update({
        joined: true,
        name: self.name ?? null,
        meshIPv4: self.meshIPv4 ?? null,
        meshIPv6: self.meshIPv6 ?? null,
        coordinator: { url: coordinatorUrl, fingerprint: fingerprint ?? null, listeners: [...listeners] },
      }),
    );
  }

  /** A disk that is full costs the memory of new peers after a restart, not the peers. */
  savePins(): void {
    this.#orWarn(() => this.#config.state.trust.save());
  }

  get #expected(): string | undefined {
    return this.#config.state.file.value.coordinator?.fingerprint ?? this.#config.coordinatorFingerprint;
  }

  #orWarn(write: () => void): void {
    try {
      write();
    } catch (error) {
      this.#config.log.warn(error instanceof Error ? error.message : String(error));
    }
  }
}
