import { type Answer, decode, type DecodedPacket, encode, type Packet } from "dns-packet";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { answerQuery } from "../../../../agent/dns/answerer.ts";
import { Zone } from "../../../../agent/dns/zone.ts";

const ZONE = new Zone([
  { name: "homelab", meshIPv4: "100.96.0.2", meshIPv6: "fd00:1:2::3" },
  { name: "only4", meshIPv4: "100.96.0.4", meshIPv6: undefined },
  { name: "wpad", meshIPv4: "100.96.0.66", meshIPv6: "fd00:1:2::66" },
  { name: "localhost", meshIPv4: "100.96.0.67", meshIPv6: undefined },
]);

describe("names of the mesh", () => {
  test.each([
    ["homelab.mesh", "A", "100.96.0.2"],
    ["homelab.mesh", "AAAA", "fd00:1:2::3"],
    ["HomeLab.MESH", "A", "100.96.0.2"],
    ["2.0.96.100.in-addr.arpa", "PTR", "homelab.mesh"],
    [`3.${"0.".repeat(19)}2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa`, "PTR", "homelab.mesh"],
  ] as const)("%s %s is %s, authoritative, with the question as it was asked", (name, type, data) => {
    const answer = ask(name, type);
    expect(answer).toMatchObject({ rcode: "NOERROR", flag_aa: true, flag_ra: false, flag_rd: true });
    expect(answer.answers).toEqual([expect.objectContaining({ name, type, data, ttl: 60 })]);
    expect(answer.questions).toEqual([{ name, type, class: "IN" }]);
  });

  test("all records at once, where somebody asks for any", () => {
    expect(ask("homelab.mesh", "ANY").answers?.map(({ type }) => type)).toEqual(["A", "AAAA"]);
  });

  test.each([
    ["only4.mesh", "AAAA"],
    ["homelab.mesh", "MX"],
    ["mesh", "A"],
    ["2.0.96.100.in-addr.arpa", "A"],
  ] as const)("%s exists without a %s: no error, no answer, and a SOA so that this may be remembered", (name, type) => {
    const answer = ask(name, type);
    expect(answer).toMatchObject({ rcode: "NOERROR", answers: [], flag_aa: true });
    expect(answer.authorities).toEqual([expect.objectContaining({ type: "SOA", ttl: 5 })]);
    // RFC 2308 §3: its owner is the zone, of which the name is a part.
    expect(name.endsWith(answer.authorities?.[0]?.name ?? "none")).toBe(true);
  });

  test.each(["nobody.mesh", "www.homelab.mesh", "a.b.c.mesh"])("%s does not exist", (name) => {
    const answer = ask(name, "A");
    expect(answer).toMatchObject({ rcode: "NXDOMAIN", answers: [], flag_aa: true });
    expect(answer.authorities).toEqual([expect.objectContaining({ type: "SOA", name: "mesh" })]);
  });

  test.each(["wpad.mesh", "localhost.mesh"])("%s never resolves, whoever calls itself so", (name) => {
    expect(ask(name, "A")).toMatchObject({ rcode: "NXDOMAIN", answers: [] });
    expect(ask("66.0.96.100.in-addr.arpa", "PTR").rcode).toBe("REFUSED");
  });

  test("the apex has its SOA", () => {
    expect(ask("mesh", "SOA").answers).toEqual([expect.objectContaining({ type: "SOA", name: "mesh" })]);
  });
});

describe("everything else", () => {
  test.each([
    "example.com",
    "homelab",
    "",
    "mesh.example.com",
    "homelabmesh",
    "1.0.0.127.in-addr.arpa",
    "9.0.96.100.in-addr.arpa",
  ])('REFUSED for "%s", so that whoever asks goes on to another server', (name) => {
    const answer = ask(name, "A");
    expect(answer).toMatchObject({ rcode: "REFUSED", answers: [], authorities: [], flag_aa: false });
  });

  test("other classes are refused", () => {
    expect(decoded(queryBytes({ questions: [{ name: "homelab.mesh", type: "A", class: "CH" }] })).rcode).toBe(
      "REFUSED",
    );
  });

  test("other operations are not implemented, and no or two questions are malformed", () => {
    const update = queryBytes({});
    update[2] = 5 << 3;
    expect(decoded(update)).toMatchObject({ rcode: "NOTIMP", opcode: "UPDATE", id: 7 });
    expect(decoded(queryBytes({ questions: [] })).rcode).toBe("FORMERR");
    const question = { name: "homelab.mesh", type: "A" } as const;
    expect(decoded(queryBytes({ questions: [question, question] })).rcode).toBe("FORMERR");
  });

  test("answers are never answered: two servers would go on for ever", () => {
    expect(answerQuery(queryBytes({ type: "response" }), ZONE)).toBeUndefined();
    expect(answerQuery(new Uint8Array(11), ZONE)).toBeUndefined();
  });

  test("EDNS is answered with EDNS, and a version that nobody knows with BADVERS (RFC 6891 §6.1.3)", () => {
    expect(ask("homelab.mesh", "A").additionals).toEqual([]);
    const good = decoded(queryBytes({ additionals: [opt(0)] }));
    expect(good.additionals).toEqual([
      expect.objectContaining({ type: "OPT", udpPayloadSize: 1232, extendedRcode: 0 }),
    ]);
    expect(good.answers).toHaveLength(1);
    const bad = decoded(queryBytes({ additionals: [opt(1)] }));
    expect(bad).toMatchObject({ rcode: "NOERROR", answers: [] });
    expect(bad.additionals).toEqual([expect.objectContaining({ type: "OPT", extendedRcode: 1, ednsVersion: 0 })]);
  });

  test("no query makes it throw, and no answer is much larger than the query", () => {
    const base = queryBytes({ additionals: [opt(0)] });
    const damaged = fc
      .array(fc.tuple(fc.nat(base.length - 1), fc.nat(255)), { maxLength: 6 })
      .map((changes) => changes.reduce((bytes, [at, value]) => bytes.with(at, value), base));
    const random = fc.uint8Array({ maxLength: 1100 });
    const truncated = fc.nat(base.length).map((length) => base.slice(0, length));
    fc.assert(
      fc.property(fc.oneof(damaged, random, truncated), (bytes) => {
        const answer = answerQuery(bytes, ZONE);
        if (answer === undefined) return;
        expect([answer[0], answer[1]]).toEqual([bytes[0], bytes[1]]);
        expect((answer[2] ?? 0) & 0x80).toBe(0x80);
        // Names are written out in full up to four times, and a SOA has numbers.
        expect(answer.length).toBeLessThan(4 * bytes.length + 150);
      }),
      { numRuns: 3000 },
    );
  });
});

function queryBytes(packet: Packet): Uint8Array {
  const questions = packet.questions ?? [{ name: "homelab.mesh", type: "A" as const }];
  return new Uint8Array(encode({ type: "query", id: 7, flags: 0x0100, ...packet, questions }));
}

const opt = (ednsVersion: number): Answer => ({
  type: "OPT",
  name: ".",
  udpPayloadSize: 4096,
  extendedRcode: 0,
  ednsVersion,
  flags: 0,
  flag_do: false,
  options: [],
});

/** With the fields that its types leave out. */
type Decoded = DecodedPacket & { readonly rcode: string; readonly opcode: string };
const decoded = (query: Uint8Array): Decoded => decode(Buffer.from(answerQuery(query, ZONE) ?? [])) as Decoded;

const ask = (name: string, type: string): Decoded => decoded(queryBytes({ questions: [{ name, type: type as "A" }] }));
