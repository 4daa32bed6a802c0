/** What the NetworkPolicies of a namespace let through, by the rules that Kubernetes states for them. */
import { BlockList } from "node:net";

type Labels = Readonly<Record<string, string>>;

interface Selector {
  readonly matchLabels?: Labels;
  readonly matchExpressions?: readonly {
    readonly key: string;
    readonly operator: string;
    readonly values?: readonly string[];
  }[];
}

interface Peer {
  readonly podSelector?: Selector;
  readonly namespaceSelector?: Selector;
  readonly ipBlock?: { readonly cidr: string; readonly except?: readonly string[] };
}

interface Rule {
  readonly from?: readonly Peer[];
  readonly to?: readonly Peer[];
  readonly ports?: readonly { readonly port: number | string }[];
}

export interface NetworkPolicy {
  readonly metadata: { readonly name: string };
  readonly spec: {
    readonly podSelector: Selector;
    readonly policyTypes: readonly ("Ingress" | "Egress")[];
    readonly ingress?: readonly Rule[];
    readonly egress?: readonly Rule[];
  };
}

/** A pod of this namespace, one of another namespace, or an address outside. */
export interface End {
  readonly labels?: Labels;
  readonly namespace?: string;
  readonly ip?: string;
}

export interface Port {
  readonly number: number;
  readonly name?: string;
}

export function selects({ matchLabels = {}, matchExpressions = [] }: Selector, labels: Labels): boolean {
  return (
    Object.entries(matchLabels).every(([key, value]) => labels[key] === value) &&
    matchExpressions.every(({ key, operator, values = [] }) => {
      if (operator !== "In") throw new Error(`expected the operator In, got ${operator}`);
      return values.includes(labels[key] ?? "");
    })
  );
}

/** Both sides have to allow it: the egress of the one, the ingress of the other. Those outside are under no policy of ours. */
export function mayReach(policies: readonly NetworkPolicy[], from: End, to: End, port: Port): boolean {
  return allows(policies, "Egress", from, to, port) && allows(policies, "Ingress", to, from, port);
}

function allows(
  policies: readonly NetworkPolicy[],
  type: "Ingress" | "Egress",
  end: End,
  other: End,
  port: Port,
): boolean {
  const { labels } = end;
  if (labels === undefined || end.namespace !== undefined) return true;
  const about = policies.filter(({ spec }) => spec.policyTypes.includes(type) && selects(spec.podSelector, labels));
  if (about.length === 0) return true;
  const rules = about.flatMap(({ spec }) => (type === "Ingress" ? spec.ingress : spec.egress) ?? []);
  return rules.some((rule) => {
    const peers = rule.from ?? rule.to;
    const ports = rule.ports?.some((each) => each.port === port.number || each.port === port.name) ?? true;
    return ports && (peers === undefined || peers.some((peer) => isPeer(peer, other)));
  });
}

function isPeer({ podSelector, namespaceSelector, ipBlock }: Peer, { labels, namespace, ip }: End): boolean {
  if (ipBlock)
    return ip !== undefined && isIn(ipBlock.cidr, ip) && !(ipBlock.except ?? []).some((cidr) => isIn(cidr, ip));
  if (namespaceSelector) {
    return (
      namespace !== undefined &&
      podSelector === undefined &&
      selects(namespaceSelector, { "kubernetes.io/metadata.name": namespace })
    );
  }
  return namespace === undefined && labels !== undefined && podSelector !== undefined && selects(podSelector, labels);
}

function isIn(cidr: string, ip: string): boolean {
  const [address = "", bits] = cidr.split("/");
  const list = new BlockList();
  list.addSubnet(address, Number(bits));
  return list.check(ip);
}
