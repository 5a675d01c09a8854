import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { StunServer } from "../../../../coordinator/stun/stun_server.ts";
import { hmacSha256 } from "../../../../shared/session/primitives.ts";
import { type Instant, instant } from "../../../../shared/time.ts";
import { decodeStun, encodeStun, STUN_BINDING, type StunAttributes } from "../../../../shared/wire/stun.ts";

describe("an ordinary client", () => {
  test("learns its address, the other address, and where the answer came from", () => {
    const result = twoAddresses().handle(request({ software: "padding enough" }), client, primary, t0);
    expect(result.reply?.socket).toEqual(primary);
    expect(decodeStun(result.reply!.bytes)).toMatchObject({
      class: "success",
      xorMappedAddress: client,
      mappedAddress: client,
      otherAddress: { ip: "203.0.113.2", port: 3479 },
      responseOrigin: { ip: "203.0.113.1", port: 3478 },
    });
    expect(result.observed).toBeUndefined();
  });

  test("who sends 20 bytes still learns both addresses, within 2.5 times the request", () => {
    const { reply } = twoAddresses().handle(request({}), client, primary, t0);
    expect(reply!.bytes.length).toBeLessThanOrEqual(50);
    const answer = decodeStun(reply!.bytes)!;
    expect([answer.xorMappedAddress, answer.otherAddress]).toEqual([client, { ip: "203.0.113.2", port: 3479 }]);
  });

  test("gets the answer from the socket that it asks for", () => {
    const server = twoAddresses();
    const from = (ip: boolean, port: boolean, at: number) =>
      server.handle(request({ changeRequest: { ip, port } }), client, primary, instant(at)).reply?.socket;
    expect(from(true, true, 0)).toEqual({ address: 1, port: 1 });
    expect(from(false, true, 1000)).toEqual({ address: 0, port: 1 });
    expect(from(true, false, 2000)).toEqual({ address: 1, port: 0 });
    expect(from(false, false, 3000)).toEqual(primary);
  });

  test("is told public addresses where a cloud maps them", () => {
    const server = new StunServer({
      addresses: [
        { ip: "10.0.0.1", publicIp: "203.0.113.1" },
        { ip: "10.0.0.2", publicIp: "203.0.113.2" },
      ],
      ports: [3478, 3479],
      hmacSha256,
      echoKey,
    });
    const answer = decodeStun(server.handle(request({ software: "padding" }), client, primary, t0).reply!.bytes);
    expect(answer?.otherAddress?.ip).toBe("203.0.113.2");
    expect(answer?.responseOrigin?.ip).toBe("203.0.113.1");
  });

  test("with one address there is no OTHER-ADDRESS, and asking for another address is refused with 420", () => {
    const server = oneAddress();
    const plain = decodeStun(server.handle(request({ software: "padding" }), client, primary, t0).reply!.bytes);
    expect(plain?.otherAddress).toBeUndefined();
    const moved = server.handle(request({ changeRequest: { ip: true, port: true } }), client, primary, t0);
    expect(decodeStun(moved.reply!.bytes)).toMatchObject({
      class: "error",
      errorCode: { code: 420 },
      unknownAttributes: [3],
    });
    const port = server.handle(request({ changeRequest: { ip: false, port: true } }), client, primary, t0);
    expect(port.reply?.socket).toEqual({ address: 0, port: 1 });
  });

  test("an IPv6 client is never sent to an IPv4 address", () => {
    const server = new StunServer({
      addresses: [
        { ip: "203.0.113.1", publicIp: "203.0.113.1" },
        { ip: "2001:db8::1", publicIp: "2001:db8::1" },
        { ip: "203.0.113.2", publicIp: "203.0.113.2" },
      ],
      ports: [3478, 3479],
      hmacSha256,
      echoKey,
    });
    const answer = server.handle(request({ software: "x".repeat(60) }), client6, { address: 1, port: 0 }, t0);
    expect(decodeStun(answer.reply!.bytes)).toMatchObject({ xorMappedAddress: client6 });
    expect(decodeStun(answer.reply!.bytes)?.otherAddress).toBeUndefined();
    expect(
      server.handle(request({ changeRequest: { ip: true, port: false } }), client, primary, t0).reply?.socket,
    ).toEqual({
      address: 2,
      port: 0,
    });
  });

  test("padding and a response port are refused as unknown, not done", () => {
    const withAttribute = (type: number) => {
      const bytes = new Uint8Array(28);
      bytes.set(request({}));
      bytes.set([0, 8], 2);
      bytes.set([0, type, 0, 4, 0, 0, 0, 1], 20);
      return decodeStun(twoAddresses().handle(bytes, client, primary, t0).reply!.bytes);
    };
    expect(withAttribute(0x26)).toMatchObject({ errorCode: { code: 420 }, unknownAttributes: [0x26] });
    expect(withAttribute(0x27)).toMatchObject({ errorCode: { code: 420 }, unknownAttributes: [0x27] });
  });
});

describe("a classic client", () => {
  const classic = (ip: boolean, port: boolean) =>
    encodeStun({
      class: "request",
      method: STUN_BINDING,
      transactionId: new Uint8Array(16).fill(1),
      changeRequest: { ip, port },
    });

  test("gets MAPPED-, CHANGED- and SOURCE-ADDRESS and nothing newer", () => {
    const answer = decodeStun(twoAddresses().handle(classic(false, false), client, primary, t0).reply!.bytes)!;
    expect(answer).toMatchObject({
      mappedAddress: client,
      changedAddress: { ip: "203.0.113.2", port: 3479 },
      sourceAddress: { ip: "203.0.113.1", port: 3478 },
    });
    expect(answer.xorMappedAddress ?? answer.software ?? answer.otherAddress).toBeUndefined();
  });

  test("gets silence when it asks for an address that is not there", () => {
    expect(oneAddress().handle(classic(true, true), client, primary, t0)).toEqual({ dropped: "cannot change address" });
  });
});

describe("limits", () => {
  test("one source gets 20 answers a second, others are not touched", () => {
    const server = twoAddresses();
    const answers = (ip: string, at: number) =>
      Array.from({ length: 100 }, (_, i) =>
        server.handle(request({}), { ip, port: 1000 + i }, primary, instant(at)),
      ).filter(({ reply }) => reply !== undefined).length;
    expect(answers("198.51.100.1", 0)).toBe(20);
    expect(answers("198.51.100.2", 0)).toBe(20);
    expect(answers("198.51.100.1", 500)).toBe(10);
  });

  test("an IPv6 source is its /64", () => {
    const server = twoAddresses();
    const answered = Array.from({ length: 100 }, (_, i) =>
      server.handle(request({}), { ip: `2001:db8::${i + 1}`, port: 9 }, primary, t0),
    ).filter(({ reply }) => reply !== undefined);
    expect(answered.length).toBe(20);
  });

  test("answers from another socket are 2 a second", () => {
    const server = twoAddresses();
    const moved = () => server.handle(request({ changeRequest: { ip: true, port: true } }), client, primary, t0).reply;
    expect([moved(), moved(), moved()].map((reply) => reply !== undefined)).toEqual([true, true, false]);
  });

  test("forged sources cannot reset the limit of an active one", () => {
    const server = twoAddresses();
    const victim = { ip: "198.51.100.1", port: 1 };
    for (let i = 0; i < 20; i++) server.handle(request({}), victim, primary, t0);
    for (let i = 0; i < 12_000; i++) {
      server.handle(request({}), { ip: `10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`, port: 1 }, primary, t0);
    }
    expect(server.handle(request({}), victim, primary, t0)).toEqual({ dropped: "rate" });
  });

  test("no answer has more than 2.5 times the bytes of its request, whatever the request", () => {
    const server = twoAddresses();
    let at = 0;
    fc.assert(
      fc.property(
        fc.record(
          {
            software: fc.string({ maxLength: 30 }),
            username: fc.string({ maxLength: 30 }),
            changeRequest: fc.record({ ip: fc.boolean(), port: fc.boolean() }),
            sequence: fc.maxSafeNat(),
          },
          { requiredKeys: [] },
        ),
        fc.boolean(),
        fc.constantFrom(client, client6),
        (attributes, fingerprint, from) => {
          const bytes = request(attributes, { fingerprint });
          const { reply } = server.handle(bytes, from, primary, instant((at += 1000)));
          expect(reply?.bytes.length ?? 0).toBeLessThanOrEqual(bytes.length * 2.5);
        },
      ),
    );
  });

  test("answers, indications, other methods, noise and our own sockets are not answered", () => {
    const server = twoAddresses();
    const id = new Uint8Array(12);
    const drop = (bytes: Uint8Array, from = client) => server.handle(bytes, from, primary, t0).reply;
    expect(drop(encodeStun({ class: "success", method: STUN_BINDING, transactionId: id }))).toBeUndefined();
    expect(drop(encodeStun({ class: "indication", method: STUN_BINDING, transactionId: id }))).toBeUndefined();
    expect(drop(encodeStun({ class: "request", method: 3, transactionId: id }))).toBeUndefined();
    expect(drop(new Uint8Array(40))).toBeUndefined();
    expect(drop(request({}), { ip: "203.0.113.2", port: 3479 })).toBeUndefined();
    expect(drop(request({}), { ip: "224.0.0.1", port: 5 })).toBeUndefined();
    expect(drop(request({}), { ip: "127.0.0.1", port: 5 })).toBeUndefined();
  });
});

describe("an agent with a token", () => {
  const secret = new Uint8Array(32).fill(5);
  const signed = (sequence: number | undefined, attributes: StunAttributes = {}, key = secret) =>
    request({ username: "token1", sequence, ...attributes }, { integrity: { key, hmacSha256 }, fingerprint: true });
  const withToken = () => {
    const server = twoAddresses();
    server.addToken("token1", secret, t0);
    return server;
  };

  /** What a source that sees its answers would echo. */
  const echoOf = (server: StunServer, sequence: number, from = client, at = t0): Uint8Array =>
    decodeStun(server.handle(signed(sequence), from, primary, at).reply!.bytes)!.echo!;

  test("is observed once it has echoed an answer, and answered with a signed answer", () => {
    const server = withToken();
    expect(server.handle(signed(1), client, primary, t0).observed).toBeUndefined();
    const echo = echoOf(server, 2);
    const result = server.handle(signed(3, { echo }), client, { address: 1, port: 1 }, t0);
    expect(result.observed).toEqual({
      tokenId: "token1",
      localAddress: { ip: "203.0.113.2", port: 3479 },
      from: client,
      at: t0,
    });
    const answer = decodeStun(result.reply!.bytes)!;
    expect(hmacSha256(secret, answer.integrity!.covered)).toEqual(answer.integrity!.tag);
  });

  test("a source that it only claims is never observed: the answer, and what to echo, goes to that source", () => {
    const server = withToken();
    const echo = echoOf(server, 1);
    const victim = { ip: "192.0.2.66", port: 443 };
    expect(server.handle(signed(2), victim, primary, t0).observed).toBeUndefined();
    expect(server.handle(signed(3, { echo }), victim, primary, t0).observed).toBeUndefined();
    expect(server.handle(signed(4, { echo: new Uint8Array(8) }), victim, primary, t0).observed).toBeUndefined();
    const sameIp = { ip: client.ip, port: client.port + 1 };
    expect(server.handle(signed(5, { echo }), sameIp, primary, t0).observed).toBeUndefined();
  });

  test("an echo is good for two to four minutes, and for one token", () => {
    const server = withToken();
    server.addToken("token2", secret, t0);
    const echo = echoOf(server, 1);
    expect(server.handle(signed(2, { echo }), client, primary, instant(239_000)).observed).toBeDefined();
    expect(server.handle(signed(3, { echo }), client, primary, instant(240_000)).observed).toBeUndefined();
    expect(server.handle(signed(1, { echo, username: "token2" }), client, primary, t0).observed).toBeUndefined();
  });

  describe("asks for an answer to another address of its own", () => {
    const silent = { ip: client.ip, port: 41_000 };
    const ask = (server: StunServer, sequence: number, echo: Uint8Array, address = silent, at = t0) =>
      server.handle(signed(sequence, { returnTo: { address, echo } }), client, primary, at);

    test("gets it there, sealed, from the socket that it asked, within the size of the question, and nothing to prove with", () => {
      const server = withToken();
      const result = ask(server, 2, echoOf(server, 1, silent));
      expect(result.reply).toMatchObject({ to: silent, socket: primary });
      expect(result.observed).toBeUndefined();
      const answer = decodeStun(result.reply!.bytes)!;
      expect([answer.class, answer.xorMappedAddress, answer.echo]).toEqual(["success", silent, undefined]);
      expect(hmacSha256(secret, answer.integrity!.covered)).toEqual(answer.integrity!.tag);
      expect(result.reply!.bytes.length).toBeLessThanOrEqual(2.5 * signed(2, { echo: new Uint8Array(8) }).length);
    });

    test("nobody can be aimed: without what an answer to that very address has brought there is none", () => {
      const server = withToken();
      server.addToken("token2", secret, t0);
      const echo = echoOf(server, 1, silent);
      const victim = { ip: "192.0.2.66", port: 443 };
      const refused = [
        ask(server, 2, new Uint8Array(8)),
        ask(server, 3, echo, victim),
        ask(server, 4, echo, { ...silent, port: 41_001 }),
        ask(server, 5, echo, silent, instant(240_000)),
        server.handle(
          signed(1, { username: "token2", returnTo: { address: silent, echo } }),
          client,
          primary,
          instant(240_000),
        ),
      ];
      for (const result of refused) expect(result).toEqual({ dropped: "return" });
    });

    test("four at once, then two a second", () => {
      const server = withToken();
      const echo = echoOf(server, 1, silent);
      const answered = (from: number, at: number): number =>
        Array.from({ length: 10 }, (_, i) => ask(server, from + i, echo, silent, instant(at))).filter(
          ({ reply }) => reply !== undefined,
        ).length;
      expect([answered(10, 0), answered(30, 1000)]).toEqual([4, 2]);
    });

    test("a stranger who asks for it gets the answer himself", () => {
      const bytes = request({ returnTo: { address: silent, echo: new Uint8Array(8) }, software: "x".repeat(40) });
      expect(twoAddresses().handle(bytes, client, primary, t0).reply?.to).toEqual(client);
    });
  });

  test("may ask for another socket more often than strangers, 150 at once and 50 a second", () => {
    const server = withToken();
    const answered = (first: number, at: Instant) =>
      Array.from({ length: 200 }, (_, i) =>
        server.handle(signed(first + i, { changeRequest: { ip: true, port: true } }), client, primary, at),
      ).filter(({ reply }) => reply !== undefined).length;
    expect(answered(1, t0)).toBe(150);
    expect(answered(1001, instant(1000))).toBe(50);
  });

  test("a request is observed once: recorded and sent again from elsewhere it does nothing", () => {
    const server = withToken();
    const bytes = signed(10, { echo: echoOf(server, 9) });
    expect(server.handle(bytes, client, primary, t0).observed).toBeDefined();
    expect(server.handle(bytes, { ip: "192.0.2.66", port: 6 }, primary, t0)).toEqual({ dropped: "replay" });
  });

  test("requests that overtake each other are all observed, ancient ones are not", () => {
    const server = withToken();
    const echo = echoOf(server, 0);
    const observed = (sequence: number, at = t0) =>
      server.handle(signed(sequence, { echo }), client, primary, at).observed !== undefined;
    expect([3, 1, 2, 2, 4].map((sequence) => observed(sequence))).toEqual([true, true, true, false, true]);
    for (let i = 100; i < 100 + 257; i++) expect(observed(i, instant(i * 20))).toBe(true);
    expect(observed(5, instant(10_000))).toBe(false);
  });

  test("a wrong tag, an unknown token or a missing number is refused and never observed", () => {
    const server = withToken();
    const wrong = server.handle(signed(1, {}, new Uint8Array(32)), client, primary, t0);
    expect(wrong.observed).toBeUndefined();
    expect(decodeStun(wrong.reply!.bytes)?.errorCode?.code).toBe(401);
    expect(server.handle(signed(undefined), client, primary, t0)).toEqual({ dropped: "replay" });
    server.removeToken("token1");
    expect(decodeStun(server.handle(signed(2), client, primary, t0).reply!.bytes)?.errorCode?.code).toBe(401);
  });
});

const t0 = instant(0);
const echoKey = new Uint8Array(32).fill(9);
const client = { ip: "198.51.100.7", port: 40_000 };
const client6 = { ip: "2001:db8:7::1", port: 40_000 };
const primary = { address: 0, port: 0 } as const;

const twoAddresses = () =>
  new StunServer({
    addresses: [
      { ip: "203.0.113.1", publicIp: "203.0.113.1" },
      { ip: "203.0.113.2", publicIp: "203.0.113.2" },
    ],
    ports: [3478, 3479],
    hmacSha256,
    echoKey,
  });
const oneAddress = () =>
  new StunServer({
    addresses: [{ ip: "203.0.113.1", publicIp: "203.0.113.1" }],
    ports: [3478, 3479],
    hmacSha256,
    echoKey,
  });

const request = (attributes: StunAttributes, sealing?: Parameters<typeof encodeStun>[1]): Uint8Array =>
  encodeStun(
    {
      class: "request",
      method: STUN_BINDING,
      transactionId: Uint8Array.from({ length: 12 }, (_, i) => i),
      ...attributes,
    },
    sealing,
  );
