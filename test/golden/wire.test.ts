/** Frozen bytes: wire.json and signal.json are what a second implementation has to produce. They change only with PROTOCOL.md. */
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { toHex, utf8, utf8Text } from "../../shared/bytes.ts";
import {
  AgentMessage,
  CoordinatorMessage,
  decodeAgentMessage,
  decodeCoordinatorMessage,
  decodeHello,
  encodeMessage,
} from "../../shared/signal/messages.ts";
import { datagramKind } from "../../shared/wire/demux.ts";
import { bytesOf, CODECS, decodeVector, encodeVector, type Vector } from "./wire_codecs.ts";

interface SignalVector {
  readonly name: string;
  readonly kind: "hello" | "agent" | "coordinator";
  readonly json: Readonly<Record<string, unknown>>;
}

const load = <T>(file: string): T[] =>
  (JSON.parse(readFileSync(new URL(file, import.meta.url), "utf8")) as { vectors: T[] }).vectors;
const wire = load<Vector>("./wire.json");
const signal = load<SignalVector>("./signal.json");

describe.each(wire)("$kind: $name", (vector) => {
  const bytes = bytesOf(vector);

  test("encodes to exactly these bytes", () => {
    expect(toHex(encodeVector(vector.kind, vector.value))).toBe(toHex(bytes));
  });

  test("decodes to exactly this value", () => {
    expect(plain(decodeVector(vector.kind, bytes, vector.value))).toEqual(vector.value);
  });

  test("with trailing bytes decodes to the same value, where a later version may add fields", () => {
    if (vector.kind !== "control" && vector.kind !== "candidates") return;
    const longer = Uint8Array.from([...bytes, 1, 2, 3]);
    expect(plain(decodeVector(vector.kind, longer, vector.value))).toEqual(vector.value);
  });

  test("cut anywhere decodes to nothing, or to what a fragment's or frame's shorter body is", () => {
    if (["fragment", "segment", "run"].includes(vector.kind)) return;
    // Each try at a handshake costs X25519 work.
    const step = ["initiation", "response", "channel"].includes(vector.kind) ? 9 : 1;
    for (let length = 0; length < bytes.length; length += step) {
      expect(decodeVector(vector.kind, bytes.subarray(0, length), vector.value), `cut to ${length}`).toBeUndefined();
    }
  });
});

test("every kind of packet, control message and candidate has a vector", () => {
  expect(new Set(wire.map(({ kind }) => kind))).toEqual(new Set(Object.keys(CODECS)));
  const controls = wire.filter(({ kind }) => kind === "control").map(({ value }) => (value as { type: string }).type);
  expect(new Set(controls)).toEqual(new Set(["probe", "probe_answer", "echo", "echo_answer", "candidates", "close", "wish", "known",
      "received", "punch_offer", "punch_end"]));
  expect(new Set(wire.map(({ name }) => name)).size).toBe(wire.length);
});

test("the first byte alone tells what a datagram is", () => {
  const kinds = { frame: "sealed", initiation: "handshake", response: "handshake", cookie: "handshake" } as const;
  for (const vector of wire) {
    const kind = (kinds as Partial<Record<string, string>>)[vector.kind];
    if (kind !== undefined) expect(datagramKind(bytesOf(vector)), vector.name).toBe(kind);
  }
  for (let first = 0; first < 256; first++) {
    const expected = first < 4 ? "stun" : first === 4 ? "sealed" : first < 8 ? "handshake" : "unknown";
    expect(datagramKind(Uint8Array.of(first))).toBe(expected);
  }
  expect(datagramKind(new Uint8Array())).toBe("unknown");
});

describe.each(signal)("$kind: $name", ({ kind, json }) => {
  const decode = { hello: decodeHello, agent: decodeAgentMessage, coordinator: decodeCoordinatorMessage }[kind];

  test("decodes, and encodes to the same JSON", () => {
    const message = decode(utf8(JSON.stringify(json)));
    if (message === undefined) throw new Error("not decoded");
    expect(JSON.parse(utf8Text(encodeMessage(message)) ?? "")).toEqual(json);
  });

  test("ignores keys that it does not know, and misses each key that it needs", () => {
    expect(decode(utf8(JSON.stringify({ ...json, later: [1] })))).toEqual(decode(utf8(JSON.stringify(json))));
    for (const key of Object.keys(json).filter((name) => !OPTIONAL.has(name))) {
      expect(decode(utf8(JSON.stringify({ ...json, [key]: undefined }))), key).toBeUndefined();
      expect(decode(utf8(JSON.stringify({ ...json, [key]: { odd: 1 } }))), key).toBeUndefined();
    }
  });
});

test("every type of signalling message has a vector", () => {
  for (const [kind, schema] of [
    ["agent", AgentMessage],
    ["coordinator", CoordinatorMessage],
  ] as const) {
    const types = schema.options.map((option) => option.entries.type.literal);
    expect(new Set(signal.filter((vector) => vector.kind === kind).map(({ json }) => json["type"]))).toEqual(
      new Set(types),
    );
  }
});

const OPTIONAL: ReadonlySet<string> = new Set(["key", "roundTripMs", "ssh", "relayToken"]);

/** As JSON has it: without keys that are undefined. */
const plain = (value: unknown): unknown => (value === undefined ? undefined : JSON.parse(JSON.stringify(value)));
