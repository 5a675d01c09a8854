/** Golden texts: what `why` says against a direct path, for each pair of networks. */
import { describe, expect, test } from "vitest";
import { explainNoDirect, NO_ATTEMPTS, type PunchRecord } from "../../../../agent/path/explain_no_direct.ts";
import { MAX_PUNCH } from "../../../../agent/path/punch_plan.ts";
import { isDirectExpected } from "../../../../agent/path/nat_behavior.ts";
import { type Filtering, type Mapping, type NatReport, UNKNOWN_NAT } from "../../../../shared/wire/candidates.ts";

const nat = (mapping: Mapping, filtering: Filtering, more: Partial<NatReport> = {}): NatReport => ({
  ...UNKNOWN_NAT,
  mapping,
  filtering,
  certain: true,
  ...more,
});
const symmetric = (more: Partial<NatReport>): NatReport =>
  nat("address-and-port-dependent", "address-and-port-dependent", more);
const block = (size: number): NatReport =>
  symmetric({ allocation: "block", ports: { first: 40_000, last: 40_000 + size - 1, stride: 0 } });

const NETWORKS = {
  open: nat("none", "endpoint-independent", { allocation: "preserving" }),
  "full cone": nat("endpoint-independent", "endpoint-independent", { allocation: "preserving" }),
  restricted: nat("endpoint-independent", "address-dependent", { allocation: "preserving" }),
  "port-restricted": nat("endpoint-independent", "address-and-port-dependent", { allocation: "preserving" }),
  firewalled: nat("none", "address-and-port-dependent", { allocation: "preserving" }),
  symmetric: symmetric({ allocation: "random" }),
  sequential: symmetric({ allocation: "sequential", ports: { first: 20_000, last: 20_000, stride: 1 } }),
  "block of 512": block(512),
  "block of 4096": block(4096),
  "exclusive block": { ...block(512), sharesPorts: false },
  "UDP blocked": { ...UNKNOWN_NAT, udpBlocked: true },
  unknown: UNKNOWN_NAT,
  "UDP over IPv4 blocked": { ...UNKNOWN_NAT, isIPv4Blocked: true },
} as const;
type Network = keyof typeof NETWORKS;
const NAMES = Object.keys(NETWORKS) as readonly Network[];

const REMEDY = "a port forward or UPnP on either router would make a direct path possible";
const HERE =
  'This router uses a different port per destination (symmetric) and the router of "nas" admits only exact ports';
const THERE =
  'The router of "nas" uses a different port per destination (symmetric) and this router admits only exact ports';
const BOTH = "Both routers use a different port per destination (symmetric) and admit only exact ports";
const SOON = "the port will be guessed in a moment, which succeeds";
const ROUND = "a round of 229 packets, at most half of a router's block of ports, succeeds in 18 % of cases";
const NORMAL = "so it is not tried, which is normal for this pair";

/** For the pairs that plain opening cannot join, and those of which a side is not known or blocked. */
function expected(here: Network, there: Network): string {
  if (here === "UDP blocked" && there === "UDP blocked") {
    return "Both networks block UDP; allowing outgoing UDP on both sides would make a direct path possible";
  }
  if (here === "UDP blocked") {
    return "This network blocks UDP; allowing outgoing UDP here would make a direct path possible";
  }
  if (there === "UDP blocked") {
    return 'The network of "nas" blocks UDP; allowing outgoing UDP there would make a direct path possible';
  }
  const SIX = "UDP over IPv4 blocked";
  if (here === SIX || there === SIX) {
    const [whose, where] =
      there !== SIX
        ? ["This network blocks", "here"]
        : here !== SIX
          ? ['The network of "nas" blocks', "there"]
          : ['This network and the network of "nas" block', "on both sides"];
    return `${whose} UDP over IPv4, and over IPv6 the two do not reach each other; allowing outgoing UDP over IPv4 ${where}, or IPv6 with UDP on both sides, would make a direct path possible`;
  }
  if (here === "unknown" || there === "unknown") {
    const whose = here === "unknown" ? "this network" : 'the network of "nas"';
    return `No direct path yet: how the router of ${whose} behaves is not known so far; probing goes on; ${REMEDY}`;
  }
  const isHard = (name: Network): boolean => /symmetric|sequential|block/.test(name);
  const isExact = (name: Network): boolean => name === "port-restricted" || name === "firewalled";
  if (isHard(here) && isExact(there)) return `${HERE} (port-restricted cone); ${SOON} nearly always; ${REMEDY}`;
  if (isExact(here) && isHard(there)) return `${THERE} (port-restricted cone); ${SOON} nearly always; ${REMEDY}`;
  const pair = `${here} x ${there}`;
  if (pair === "exclusive block x symmetric" || pair === "symmetric x exclusive block") {
    const packets = here === "symmetric" ? "4000 packets from here and 229" : "229 packets from here and 4000";
    return `${BOTH}; guessing ports with ${packets} from there would succeed once in 37 attempts, ${NORMAL}; ${REMEDY}`;
  }
  if (isHard(here) && isHard(there))
    return `${BOTH}; ${MEETING[[here, there].toSorted().join(" x ")] ?? "?"}; ${REMEDY}`;
  return `No direct path yet although these routers (${LABELS[here] ?? ""}, ${LABELS[there] ?? ""}) allow one: probes are being lost, perhaps in a firewall; probing goes on; allowing UDP to any address and port on both sides would make one possible`;
}

const LABELS: Readonly<Partial<Record<Network, string>>> = {
  open: "open",
  "full cone": "full cone",
  restricted: "restricted cone",
  "port-restricted": "port-restricted cone",
  firewalled: "port-restricted cone",
  symmetric: "symmetric",
  sequential: "symmetric",
  "block of 512": "symmetric",
  "block of 4096": "symmetric",
  "exclusive block": "symmetric",
};

/** From n packets of each side among Na x Nb pairs of ports, or n among N opposite a counter: 1 - exp(-n^2 / (Na Nb)), 1 - exp(-n / N). */
const MEETING: Readonly<Record<string, string>> = {
  "symmetric x symmetric": `guessing ports with 4000 packets from each side would succeed once in 260 attempts, ${NORMAL}`,
  "sequential x symmetric": `guessing ports with 4000 packets from each side would succeed in 6 % of cases, ${NORMAL}`,
  "block of 512 x symmetric": `${SOON} in 38 % of cases`,
  "block of 4096 x symmetric": `guessing ports with 4000 packets from each side would succeed in 6 % of cases, ${NORMAL}`,
  "sequential x sequential": `${SOON} nearly always`,
  "block of 512 x sequential": `${SOON} nearly always`,
  "block of 4096 x sequential": `${SOON} in 62 % of cases`,
  "block of 512 x block of 512": `${SOON} nearly always`,
  "block of 4096 x block of 512": `${SOON} nearly always`,
  "block of 4096 x block of 4096": `${SOON} in 61 % of cases`,
  // Half of the block, and 4000 packets opposite it.
  "block of 512 x exclusive block": `${SOON} in 97 % of cases`,
  "block of 4096 x exclusive block": `${SOON} in 35 % of cases`,
  "exclusive block x exclusive block": `ports are guessed in rounds: ${ROUND}, 16 of them, two minutes apart, in 96 % of cases`,
  "exclusive block x sequential": `ports are guessed in rounds: a round of 229 packets, at most half of a router's block of ports, succeeds in 36 % of cases, 16 of them, two minutes apart, nearly always`,
};

describe.each(NAMES)("%s here", (here) => {
  test.each(NAMES)("%s there", (there) => {
    expect(explainNoDirect(NETWORKS[here], NETWORKS[there], "nas")).toBe(expected(here, there));
  });
});

test("a router is blamed only where plain opening cannot do", () => {
  for (const here of NAMES) {
    for (const there of NAMES) {
      const blames = /different port per destination/.test(explainNoDirect(NETWORKS[here], NETWORKS[there], "nas"));
      const { udpBlocked } = NETWORKS[here];
      if (udpBlocked || NETWORKS[there].udpBlocked) expect(blames).toBe(false);
      else expect(blames, `${here} x ${there}`).toBe(isDirectExpected(NETWORKS[here], NETWORKS[there]) === false);
    }
  }
});

test.each(NAMES.flatMap((here) => NAMES.map((there) => [here, there] as const)))(
  "%s x %s behind one public address: the inside network is what is missing, or hairpin where that would do, unless UDP is blocked",
  (here, there) => {
    const sentence = explainNoDirect(NETWORKS[here], NETWORKS[there], "nas", NO_ATTEMPTS, true);
    if (here === "UDP blocked" || there === "UDP blocked") expect(sentence).toBe(expected(here, there));
    else {
      const canHairpin = isDirectExpected(NETWORKS[here], NETWORKS[there]) !== false;
      expect(sentence).toBe(
        `Both machines are behind one public address, and neither the network behind it nor the router or carrier that has it leads from one to the other; ${canHairpin ? "switching off client isolation in that network, or switching on hairpin (NAT loopback) at that router," : "letting them reach each other inside that network (client isolation off, a route between its parts)"} would make a direct path possible`,
      );
    }
  },
);

describe("a router that is behind another NAT, as a carrier's customer is told by its router", () => {
  const carried = (name: Network): NatReport => ({ ...NETWORKS[name], isRouterBehindNat: true });
  const INNER = "behind another NAT, as those of a carrier's customers are";
  const UNLIKELY = `guessing ports with 4000 packets from each side would succeed once in 260 attempts, ${NORMAL}`;

  test("here: the other router is the one to open", () => {
    expect(explainNoDirect(carried("symmetric"), NETWORKS.symmetric, "nas")).toBe(
      `${BOTH}; ${UNLIKELY}; a port forward or UPnP on the router of "nas" would make a direct path possible; on this router it would not, since that is ${INNER}`,
    );
  });

  test("there: this router is the one to open", () => {
    expect(explainNoDirect(NETWORKS.symmetric, carried("port-restricted"), "nas")).toBe(
      `${HERE} (port-restricted cone); ${SOON} nearly always; a port forward or UPnP on this router would make a direct path possible; on the router of "nas" it would not, since that is ${INNER}`,
    );
  });

  test("on both sides: no port forward helps, the provider does", () => {
    expect(explainNoDirect(carried("symmetric"), carried("symmetric"), "nas")).toBe(
      `${BOTH}; ${UNLIKELY}; both routers are ${INNER}, so a port forward or UPnP on them would not help; a public address from the provider, on either side, with a port forward or UPnP on the router there would make a direct path possible`,
    );
  });

  test("is not blamed where plain opening should do", () => {
    expect(explainNoDirect(carried("port-restricted"), carried("port-restricted"), "nas")).toBe(
      expected("port-restricted", "port-restricted"),
    );
  });

  test("and both at one carrier that does not turn packets round: that is what is said", () => {
    const sentence = explainNoDirect(carried("port-restricted"), carried("restricted"), "nas", NO_ATTEMPTS, true);
    expect(sentence).toBe(
      "Both machines are behind one public address, and neither the network behind it nor the router or carrier that has it leads from one to the other; switching off client isolation in that network, or switching on hairpin (NAT loopback) at that router, would make a direct path possible",
    );
  });
});

describe("a coordinator inside one peer's network, where nobody has seen that peer's public address", () => {
  const UNSEEN: NatReport = { ...UNKNOWN_NAT, isUnseen: true };
  const EITHER = "UPnP, NAT-PMP or PCP on either router would make a direct path possible";

  test.each(NAMES.filter((name) => !name.startsWith("UDP")))("here, %s there", (there) => {
    expect(explainNoDirect(UNSEEN, NETWORKS[there], "nas")).toBe(
      `The coordinator is in this machine's own network, so nobody has seen the public address of this router; ${EITHER}`,
    );
  });

  test.each(NAMES.filter((name) => !name.startsWith("UDP")))("there, %s here", (here) => {
    expect(explainNoDirect(NETWORKS[here], UNSEEN, "nas")).toBe(
      `The coordinator is in the network of "nas", so nobody has seen the public address of the router there; ${EITHER}`,
    );
  });

  test("whose router is behind a carrier's NAT: the other router is the one to open", () => {
    const sentence = explainNoDirect({ ...UNSEEN, isRouterBehindNat: true }, NETWORKS.symmetric, "nas");
    expect(sentence).toBe(
      "The coordinator is in this machine's own network, so nobody has seen the public address of this router; UPnP, NAT-PMP or PCP on the router of \"nas\" would make a direct path possible; on this router it would not, since that is behind another NAT, as those of a carrier's customers are",
    );
  });

  test("with both machines inside: what lies between them there", () => {
    expect(explainNoDirect(UNSEEN, UNSEEN, "nas")).toBe(
      "Both machines are in the coordinator's own network, and it does not lead from one to the other; allowing UDP between them there (a firewall, client isolation) would make a direct path possible",
    );
  });
});

test("guessing that an operator has switched off, here or there", () => {
  const say = (packets: number, isOffThere: boolean): string =>
    explainNoDirect(NETWORKS["port-restricted"], NETWORKS.symmetric, "nas", NO_ATTEMPTS, false, {
      limits: { ...MAX_PUNCH, packets },
      isOffThere,
    });
  const here = "guessing ports is switched off on this machine by --punch-packets 0";
  expect(say(0, false)).toBe(`${THERE} (port-restricted cone); ${here}; ${REMEDY}`);
  expect(say(4000, true)).toBe(`${THERE} (port-restricted cone); guessing ports is switched off on "nas"; ${REMEDY}`);
});

describe("how attempts have gone", () => {
  const say = (here: Network, there: Network, record: Partial<PunchRecord>): string =>
    explainNoDirect(NETWORKS[here], NETWORKS[there], "nas", { ...NO_ATTEMPTS, ...record });

  test.each<[string, Network, Network, Partial<PunchRecord>, string]>([
    [
      "failures that chance explains",
      "block of 512",
      "symmetric",
      { failed: 3 },
      `${BOTH}; 3 attempts at guessing the port found nothing so far, where each succeeds in 38 % of cases; more follow; ${REMEDY}`,
    ],
    [
      "failures of two blocks are nobody's fault: their routers may be of the kind that fills up",
      "block of 512",
      "block of 512",
      { failed: 2 },
      `${BOTH}; 2 of 16 rounds of guessing ports found nothing so far: a round of 229 packets, at most half of a router's block of ports, succeeds in 18 % of cases, 16 of them, two minutes apart, in 96 % of cases; ${REMEDY}`,
    ],
    [
      "failures that chance does not explain",
      "port-restricted",
      "symmetric",
      { failed: 1 },
      `${THERE} (port-restricted cone); one attempt at guessing the port found nothing, although each succeeds nearly always: packets are being lost, perhaps in a firewall; ${REMEDY}`,
    ],
    [
      "rounds in blocks of which each port serves one, before the first",
      "exclusive block",
      "exclusive block",
      {},
      `${BOTH}; ports are guessed in rounds: ${ROUND}, 16 of them, two minutes apart, in 96 % of cases; ${REMEDY}`,
    ],
    [
      "rounds, after some",
      "exclusive block",
      "exclusive block",
      { failed: 3 },
      `${BOTH}; 3 of 16 rounds of guessing ports found nothing so far: ${ROUND}, 16 of them, two minutes apart, in 96 % of cases; ${REMEDY}`,
    ],
    [
      "rounds, after all of them",
      "exclusive block",
      "exclusive block",
      { failed: 16 },
      `${BOTH}; 16 rounds of guessing ports found nothing, where ${ROUND}; one more follows each 10 minutes; ${REMEDY}`,
    ],
    [
      "a block of which it is not known, after an attempt that chance does not explain",
      "block of 512",
      "block of 512",
      { failed: 1 },
      `${BOTH}; 1 of 16 rounds of guessing ports found nothing so far: ${ROUND}, 16 of them, two minutes apart, in 96 % of cases; ${REMEDY}`,
    ],
    [
      "a peer that does not agree",
      "symmetric",
      "port-restricted",
      { refusal: "unwilling" },
      `${HERE} (port-restricted cone); "nas" does not agree to guessing ports; ${REMEDY}`,
    ],
    [
      "an address that the coordinator has not seen",
      "symmetric",
      "port-restricted",
      { refusal: "not attested" },
      `${HERE} (port-restricted cone); ports are not guessed, since the coordinator has not seen the public address of "nas" itself; ${REMEDY}`,
    ],
    [
      "one that was busy is asked again",
      "symmetric",
      "port-restricted",
      { refusal: "busy" },
      `${HERE} (port-restricted cone); ${SOON} nearly always; ${REMEDY}`,
    ],
  ])("%s", (_, here, there, record, sentence) => expect(say(here, there, record)).toBe(sentence));
});
