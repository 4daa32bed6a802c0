/**
 * A real control plane without nodes: etcd, kube-apiserver and the controllers of Deployments and ReplicaSets, built from
 * Kubernetes' own sources (infra/k8s/control-plane). Who runs pods is whoever uses this: a pod is what its status says.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

import { freePort } from "#cli/ports.ts";
import { LOOPBACK } from "#test/support/tls.ts";

export interface Answer {
  readonly status: number;
  // As loose as JSON is.
  readonly body: Record<string, unknown>;
}

export interface ControlPlane {
  readonly url: string;
  readonly caFile: string;
  /** Starts another of the programs, as an administrator of this cluster; `lastWords` has what it says. */
  run(program: string, args: readonly string[], env?: Readonly<Record<string, string>>): void;
  lastWords(): string;
  /** As an administrator, or with another token. */
  call(method: string, path: string, body?: object, options?: { token?: string; type?: string }): Promise<Answer>;
  stop(): Promise<void>;
}

const ADMIN = "the-token-of-an-administrator";
const CONTROLLERS = "the-token-of-the-controllers";
const START_TIMEOUT_MS = 90_000;

/** `programs`: the folder with etcd, kube-apiserver and kube-controller-manager. */
export async function startControlPlane(programs: string): Promise<ControlPlane> {
  const folder = await mkdtemp(join(tmpdir(), "dream-engine-control-plane-"));
  const [client, peer, secure, controllers] = await Promise.all([freePort(), freePort(), freePort(), freePort()]);
  const file = (name: string): string => join(folder, name);
  const url = `https://127.0.0.1:${secure}`;
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  const cluster = { server: url, "certificate-authority": file("ca.crt") };
  const kubeconfig = {
    apiVersion: "v1",
    kind: "Config",
    clusters: [{ name: "here", cluster }],
    users: [{ name: "controllers", user: { token: CONTROLLERS } }],
    contexts: [{ name: "here", context: { cluster: "here", user: "controllers" } }],
    "current-context": "here",
  };
  await Promise.all([
    writeFile(file("ca.crt"), LOOPBACK.cert),
    writeFile(file("tls.key"), LOOPBACK.key),
    writeFile(file("accounts.key"), privateKey.export({ type: "pkcs8", format: "pem" })),
    writeFile(file("tokens.csv"), `${ADMIN},admin,1,"system:masters"\n${CONTROLLERS},controllers,2,"system:masters"\n`),
    writeFile(file("kubeconfig"), JSON.stringify(kubeconfig)),
  ]);

  const running: ChildProcess[] = [];
  let words = "";
  const start = (name: string, args: readonly string[], env: Readonly<Record<string, string>> = {}): void => {
    const options = { env: { ...process.env, KUBECONFIG: file("kubeconfig"), ...env } };
    const child = spawn(join(programs, name), args, { ...options, stdio: ["ignore", "ignore", "pipe"] });
    child.stderr.on("data", (chunk: Buffer) => (words = (words + chunk.toString()).slice(-2_000)));
    running.push(child);
  };
  start("etcd", [file("etcd"), `http://127.0.0.1:${client}`, `http://127.0.0.1:${peer}`]);
  start("kube-apiserver", [
    `--etcd-servers=http://127.0.0.1:${client}`,
    "--bind-address=127.0.0.1",
    // Told to nobody; it may not be loopback.
    "--advertise-address=192.0.2.1",
    "--endpoint-reconciler-type=none",
    `--secure-port=${secure}`,
    `--tls-cert-file=${file("ca.crt")}`,
    `--tls-private-key-file=${file("tls.key")}`,
    `--token-auth-file=${file("tokens.csv")}`,
    "--authorization-mode=RBAC",
    "--service-cluster-ip-range=10.96.0.0/16",
    "--service-account-issuer=https://kubernetes.default.svc",
    `--service-account-key-file=${file("accounts.key")}`,
    `--service-account-signing-key-file=${file("accounts.key")}`,
  ]);

  function call(
    method: string,
    path: string,
    body?: object,
    { token = ADMIN, type }: { token?: string; type?: string } = {},
  ): Promise<Answer> {
    const { promise, resolve, reject } = Promise.withResolvers<Answer>();
    const text = body === undefined ? "" : JSON.stringify(body);
    const headers = {
      authorization: `Bearer ${token}`,
      "content-type": type ?? "application/json",
      "content-length": Buffer.byteLength(text),
    };
    const sent = request(new URL(path, url), { method, headers, ca: LOOPBACK.cert, timeout: 20_000 }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("error", reject);
      response.on("end", () => {
        const text = Buffer.concat(chunks).toString();
        const isJson = response.headers["content-type"]?.startsWith("application/json") === true;
        resolve({ status: response.statusCode ?? 0, body: isJson ? (JSON.parse(text) as Answer["body"]) : { text } });
      });
    });
    sent.on("timeout", () => sent.destroy(new Error(`${method} ${path} took more than 20 s`)));
    sent.on("error", reject);
    sent.end(text);
    return promise;
  }

  async function stop(): Promise<void> {
    for (const child of running.toReversed()) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const ended = new Promise((resolve) => child.once("exit", resolve));
      child.kill("SIGKILL"); // nothing of it is kept
      await ended;
    }
    await rm(folder, { recursive: true, force: true });
  }

  try {
    await untilReady(async () => (await call("GET", "/readyz")).status === 200, running);
    start("kube-controller-manager", [
      `--kubeconfig=${file("kubeconfig")}`,
      "--bind-address=127.0.0.1",
      `--secure-port=${controllers}`,
      "--leader-elect=false",
      "--use-service-account-credentials=false",
      "--controllers=deployment-controller,replicaset-controller,serviceaccount-controller",
    ]);
  } catch (error) {
    await stop();
    throw new Error(`the control plane did not start; the last words of its programs:\n${words}`, { cause: error });
  }
  return { url, caFile: file("ca.crt"), run: start, lastWords: () => words, call, stop };
}

async function untilReady(isReady: () => Promise<boolean>, running: readonly ChildProcess[]): Promise<void> {
  const deadline = performance.now() + START_TIMEOUT_MS;
  while (!(await isReady().catch(() => false))) {
    const ended = running.find(({ exitCode }) => exitCode !== null);
    if (ended) throw new Error(`${ended.spawnfile} ended with ${ended.exitCode}`);
    if (performance.now() > deadline) throw new Error(`no API server within ${START_TIMEOUT_MS} ms`);
    await delay(200);
  }
}
