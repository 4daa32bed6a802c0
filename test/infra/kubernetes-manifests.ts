/** What `npm run check:k8s -- -write` rendered from infra/k8s, as values. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { parseAllDocuments } from "yaml";

import { selects } from "./network-policies.ts";

export const FOLDER = "infra/k8s";
export const NAMESPACE = "dream-engine";

export type Labels = Record<string, string>;
interface Ref {
  readonly name: string;
  readonly key: string;
  readonly optional?: boolean;
}
interface Probe {
  readonly httpGet?: { readonly path: string; readonly port: string };
}
interface Container {
  readonly name: string;
  readonly image: string;
  readonly command?: string[];
  readonly args?: string[];
  readonly env?: {
    readonly name: string;
    readonly value?: string;
    readonly valueFrom?: { readonly secretKeyRef: Ref };
  }[];
  readonly envFrom?: { readonly configMapRef: { readonly name: string } }[];
  readonly ports?: { readonly name: string; readonly containerPort: number }[];
  readonly startupProbe?: Probe;
  readonly livenessProbe?: Probe;
  readonly readinessProbe?: Probe;
}
interface PodTemplate {
  readonly metadata: { readonly labels: Labels };
  readonly spec: {
    readonly containers: [Container];
    readonly terminationGracePeriodSeconds?: number;
    readonly serviceAccountName?: string;
    readonly automountServiceAccountToken?: boolean;
  };
}
/** As loose as YAML is; the types that matter are the API server's. */
export interface Thing {
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly namespace?: string; readonly labels?: Labels };
  readonly spec: {
    readonly template: PodTemplate;
    readonly selector: { readonly matchLabels: Labels };
    readonly scaleTargetRef: { readonly name: string };
    readonly [field: string]: unknown;
  };
  readonly data: Record<string, string>;
  readonly [field: string]: unknown;
}

export const parse = (text: string): Thing[] => parseAllDocuments(text).map((document) => document.toJS() as Thing);
export const read = (path: string): string => readFileSync(path, "utf8");

export function digestOfSources(): string {
  const hash = createHash("sha256");
  const files = readdirSync(FOLDER, { recursive: true, encoding: "utf8" })
    .filter((path) => path.endsWith(".yaml") && !/^(rendered|check)\//.test(path))
    .toSorted(inOrderOfWalk);
  for (const path of files) {
    const text = readFileSync(join(FOLDER, path));
    hash.update(`${path} ${text.length}\n`).update(text);
  }
  return hash.digest("hex");
}

/** Name by name, as a walk through folders goes. */
function inOrderOfWalk(a: string, b: string): number {
  const [left, right] = [a.split("/"), b.split("/")];
  const at = left.findIndex((name, index) => name !== right[index]);
  return (left[at] ?? "") < (right[at] ?? "") ? -1 : 1;
}

export const overlays = readdirSync(join(FOLDER, "overlays"));

export const podOf = ({ spec }: Thing): PodTemplate => spec.template;
export const containerOf = (thing: Thing): Container => podOf(thing).spec.containers[0];
export const secretRefsOf = (thing: Thing): Ref[] =>
  (containerOf(thing).env ?? []).flatMap(({ valueFrom }) => valueFrom?.secretKeyRef ?? []);

interface Overlay {
  readonly things: readonly Thing[];
  /** What runs pods, and of these our own program's. */
  readonly workloads: readonly Thing[];
  readonly ours: readonly Thing[];
  readonly of: (kind: string) => Thing[];
  readonly named: (kind: string, name: string) => Thing;
  /** Workloads whose pods have these labels. */
  readonly runs: (labels: Labels) => Thing[];
}

export function readOverlay(overlay: string): Overlay {
  const things = parse(read(join(FOLDER, "rendered", `${overlay}.yaml`)));
  const of = (kind: string): Thing[] => things.filter((thing) => thing.kind === kind);
  const workloads = things.filter(({ kind }) => ["Deployment", "StatefulSet", "Job"].includes(kind));
  const runs = (matchLabels: Labels): Thing[] =>
    workloads.filter((thing) => selects({ matchLabels }, podOf(thing).metadata.labels));
  return {
    things,
    workloads,
    ours: runs({ "app.kubernetes.io/name": "dream-engine" }),
    of,
    named(kind, name) {
      const found = of(kind).find(({ metadata }) => metadata.name === name);
      if (found) return found;
      const there = of(kind).map(({ metadata }) => metadata.name);
      throw new Error(`${overlay} has no ${kind} ${name}; it has ${there.join(", ")}`);
    },
    runs,
  };
}
