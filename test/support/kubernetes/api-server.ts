/** The part of an API server that our driver speaks to, over TLS, on top of a fake cluster; as strict, and as unreliable as told. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { KubernetesAccess } from "#scheduler/scaling/fleet/kubernetes-api.ts";
import { LOOPBACK } from "#test/support/tls.ts";

import type { Cluster, FakePod } from "./cluster.ts";

const NAMESPACE = "dream-engine";

export interface ApiServer {
  readonly access: KubernetesAccess;
  /** The environment and the files that a container would find; for `inClusterAccess`. */
  readonly env: Readonly<Record<string, string>>;
  readonly folder: string;
  /** `GET /api/…` without the query, in order; a request is in it as soon as it came. */
  readonly requests: string[];
  /** The next request that this matches is answered so; "hang": never. */
  fail(matches: RegExp, how: number | "hang", times?: number): void;
  /** Is waited for before a patch is done. */
  beforePatch(run: () => Promise<void>): void;
  /** The next list's continuations are too old by the time they are asked for. */
  forgetContinuations(): void;
  /** From now on only this token is taken, and it is the one in the file. */
  rotateToken(token: string): Promise<void>;
  /** As that, but nobody has put it into the file. */
  expireToken(token: string): void;
  /** Nobody listens until `goOn`. */
  pause(): Promise<void>;
  goOn(): Promise<void>;
  stop(): Promise<void>;
}

/** `pageItems`: objects a page of a list has, however many are asked for. */
export async function startApiServer(cluster: Cluster, { pageItems = 500 } = {}): Promise<ApiServer> {
  const folder = await mkdtemp(join(tmpdir(), "dream-engine-cluster-"));
  let token = "token-1";
  const faults: { matches: RegExp; how: number | "hang"; times: number }[] = [];
  const requests: string[] = [];
  let oldest = 0;
  let beforePatch: (() => Promise<void>) | null = null;

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = "", headers } = request;
    const url = new URL(request.url ?? "/", "https://cluster");
    requests.push(`${method} ${url.pathname}`);
    const chunks: Buffer[] = [];
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);

    const fault = faults.find(({ matches, times }) => times > 0 && matches.test(`${method} ${url.pathname}`));
    if (fault) {
      fault.times -= 1;
      if (fault.how === "hang") return;
      return refuse(response, fault.how, `told to fail with ${fault.how}`);
    }
    if (headers.authorization !== `Bearer ${token}`) return refuse(response, 401, "Unauthorized");

    const [, kind, name] =
      /^\/(?:api\/v1|apis\/apps\/v1)\/namespaces\/dream-engine\/(\w+)(?:\/([\w-]+))?$/.exec(url.pathname) ?? [];
    if (method === "GET" && kind === "pods" && name === undefined) return list(url.searchParams, response);
    if (method === "GET" && kind === "deployments" && name !== undefined) return getDeployment(name, response);
    if (method === "PATCH" && kind === "pods" && name !== undefined) {
      if (headers["content-type"] !== "application/merge-patch+json")
        return refuse(response, 415, "unsupported media type");
      const { metadata, ...rest } = JSON.parse(Buffer.concat(chunks).toString()) as {
        metadata: { annotations: Record<string, string | null> };
      };
      if (Object.keys(rest).length > 0) return refuse(response, 403, "this account may change annotations alone");
      await beforePatch?.();
      const pod = cluster.pods.get(name);
      if (!pod) return refuse(response, 404, `pods "${name}" not found`);
      cluster.patch(name, metadata.annotations);
      return void response.end(JSON.stringify(podObject(pod)));
    }
    return refuse(response, 403, `${kind ?? url.pathname} is forbidden: this account cannot ${method} it`);
  }

  function list(query: URLSearchParams, response: ServerResponse): void {
    const labels = (query.get("labelSelector") ?? "").split(",").map((pair) => pair.split("="));
    const [from = 0, state = cluster.version()] = (query.get("continue") ?? "").split("@").filter(Boolean).map(Number);
    if (state < oldest) return refuse(response, 410, "The provided continue parameter is too old");
    const matching = [...cluster.pods.values()].filter(({ template }) =>
      labels.every(([name = "", value]) => template.labels[name] === value),
    );
    const to = from + Math.min(pageItems, Number(query.get("limit") ?? pageItems));
    const more = to < matching.length ? { continue: `${to}@${state}` } : {};
    const metadata = { resourceVersion: String(state), ...more };
    const items = matching.slice(from, to).map(podObject);
    response.end(JSON.stringify({ kind: "PodList", apiVersion: "v1", metadata, items }));
    if (forgetNext) {
      forgetNext = false;
      oldest = state + 1;
      cluster.patch(matching[0]?.name ?? "", {}); // the version goes on
    }
  }
  let forgetNext = false;

  function getDeployment(name: string, response: ServerResponse): void {
    const deployment = cluster.deployments.get(name);
    if (!deployment) return refuse(response, 404, `deployments.apps "${name}" not found`);
    const { replicas, podsMax } = deployment;
    const conditions = [
      {
        type: "ReplicaFailure",
        status: String(replicas > podsMax),
        reason: "FailedCreate",
        message: "exceeded quota: pods",
      },
    ].filter(({ status }) => status === "true");
    const status = { conditions: conditions.map((condition) => ({ ...condition, status: "True" })) };
    response.end(JSON.stringify({ metadata: { name }, spec: { replicas }, status }));
  }

  const server = createServer(LOOPBACK, (request, response) => {
    answer(request, response).catch(() => response.destroy());
  });
  const listen = (port: number): Promise<void> => new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  await listen(0);
  const { port } = server.address() as AddressInfo; // a server that listens on TCP has one
  const close = (): Promise<void> =>
    new Promise((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    });
  const tokenFile = join(folder, "token");
  const caFile = join(folder, "ca.crt");
  await Promise.all([
    writeFile(tokenFile, token),
    writeFile(caFile, LOOPBACK.cert),
    writeFile(join(folder, "namespace"), `${NAMESPACE}\n`),
  ]);
  return {
    access: { url: `https://127.0.0.1:${port}`, namespace: NAMESPACE, tokenFile, caFile },
    env: { KUBERNETES_SERVICE_HOST: "127.0.0.1", KUBERNETES_SERVICE_PORT: String(port) },
    folder,
    requests,
    fail: (matches, how, times = 1) => void faults.push({ matches, how, times }),
    beforePatch: (run) => void (beforePatch = run),
    forgetContinuations: () => void (forgetNext = true),
    async rotateToken(next) {
      token = next;
      await writeFile(tokenFile, next);
    },
    expireToken: (next) => void (token = next),
    pause: close,
    goOn: () => listen(port),
    async stop() {
      await close();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

function refuse(response: ServerResponse, code: number, message: string): void {
  const status = { kind: "Status", apiVersion: "v1", status: "Failure", message, code };
  response.writeHead(code, { "content-type": "application/json" }).end(JSON.stringify(status));
}

/** Times of Kubernetes have no fractions. */
const stamp = (ms: number): string => new Date(Math.floor(ms / 1000) * 1000).toISOString().replace(".000", "");

function podObject(pod: FakePod): object {
  const { template, readyMs, restarts, lastDeathMs } = pod;
  const scheduled = template.fate === "unschedulable" ? "False" : "True";
  const ended =
    lastDeathMs === null ? {} : { terminated: { exitCode: 1, reason: "Error", finishedAt: stamp(lastDeathMs) } };
  const waiting =
    template.fate === "no image"
      ? { reason: "ImagePullBackOff", message: 'Back-off pulling image "dream-engine:none"' }
      : { reason: restarts > 0 ? "CrashLoopBackOff" : "ContainerCreating" };
  const isWaiting = pod.phase === "Pending" || (restarts > 0 && pod.startedMs === null);
  return {
    metadata: {
      name: pod.name,
      resourceVersion: String(pod.version),
      creationTimestamp: stamp(pod.createdMs),
      ...(pod.deletedMs === null ? {} : { deletionTimestamp: stamp(pod.deletedMs + template.terminationGraceMs) }),
      labels: template.labels,
      annotations: Object.fromEntries(pod.annotations),
    },
    spec: { containers: [{ name: "worker", ports: [{ name: "metrics", containerPort: pod.port, protocol: "TCP" }] }] },
    status: {
      phase: pod.phase,
      ...(pod.port === 0 ? {} : { podIP: "127.0.0.1" }),
      conditions: [
        {
          type: "PodScheduled",
          status: scheduled,
          ...(scheduled === "False"
            ? { reason: "Unschedulable", message: "0/3 nodes are available: 3 Insufficient nvidia.com/gpu." }
            : {}),
        },
        {
          type: "Ready",
          status: readyMs === null ? "False" : "True",
          lastTransitionTime: stamp(readyMs ?? pod.createdMs),
        },
      ],
      containerStatuses: [
        {
          name: "worker",
          restartCount: restarts,
          state: isWaiting ? { waiting } : { running: { startedAt: stamp(pod.startedMs ?? pod.createdMs) } },
          lastState: ended,
        },
      ],
    },
  };
}
