/**
 * A headless Chromium for tests of pages, over its DevTools protocol and Node's own WebSocket: what is installed on this
 * machine is used, nothing is downloaded. Tests of pages are skipped where there is none.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

import type { Service } from "#platform/lifecycle.ts";

const run = promisify(execFile);
const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/** CHROMIUM_PATH, else the first of the usual names that runs; null, with a warning, where there is none. */
export async function findChromium(): Promise<string | null> {
  const { CHROMIUM_PATH } = process.env;
  for (const name of CHROMIUM_PATH === undefined ? NAMES : [CHROMIUM_PATH]) {
    const works = await run(name, ["--version"]).then(
      () => true,
      () => false, // not installed under this name
    );
    if (works) return name;
  }
  console.warn(
    `SKIPPED: pages are not looked at, because there is no Chromium here (tried ${CHROMIUM_PATH ?? NAMES.join(", ")}); ` +
      "install the package chromium, or set CHROMIUM_PATH",
  );
  return null;
}

export interface Tab {
  /** Errors of scripts and of the console, and what the policy of the page refused, so far; for emptying. */
  readonly problems: string[];
  go(url: string): Promise<void>;
  /** The value of an expression or of its promise; throws what it throws. */
  evaluate<T>(expression: string): Promise<T>;
  /** Looks until it holds; throws with what was last seen. */
  until(expression: string): Promise<void>;
  /** What a person sees of it, in CSS pixels. */
  appear(as: Appearance): Promise<void>;
  /** A PNG of the window, or of the whole page. */
  screenshot(file: string, options?: { readonly whole?: boolean }): Promise<void>;
  press(key: keyof typeof KEYS): Promise<void>;
}

const KEYS = {
  Enter: { windowsVirtualKeyCode: 13, text: "\r" },
  Escape: { windowsVirtualKeyCode: 27 },
} as const;

export interface Appearance {
  readonly width: number;
  readonly height: number;
  readonly scheme: "light" | "dark";
  readonly phone?: boolean;
}

export interface Chromium extends Service {
  tab(): Promise<Tab>;
}

const STARTS_WITHIN_MS = 60_000;
const ANSWERS_WITHIN_MS = 60_000;
const HOLDS_WITHIN_MS = 30_000;
const ENDS_WITHIN_MS = 10_000;

export async function startChromium(path: string): Promise<Chromium> {
  const profile = await mkdtemp(join(tmpdir(), "dream-engine-chromium-"));
  const child = spawn(
    path,
    [
      "--headless=new",
      "--remote-debugging-port=0",
      `--user-data-dir=${profile}`,
      "--no-first-run",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--hide-scrollbars",
      "--disable-extensions",
      "--disable-background-networking",
      // Its sandbox refuses to run as root, as in containers; the only pages it opens are ours.
      ...(process.getuid?.() === 0 ? ["--no-sandbox"] : []),
      "about:blank",
    ],
    { stdio: ["ignore", "ignore", "pipe"] },
  );
  const connection = await connect(await addressOf(child));
  return {
    tab: () => openTab(connection),
    async stop() {
      const gone = child.exitCode === null ? once(child, "exit") : Promise.resolve();
      const late = setTimeout(() => child.kill("SIGKILL"), ENDS_WITHIN_MS);
      // It may go without an answer.
      await connection.send("Browser.close").catch(() => undefined);
      await gone;
      clearTimeout(late);
      await rm(profile, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}

async function addressOf(child: ChildProcess): Promise<string> {
  const { stderr } = child;
  if (!stderr) throw new Error("started with a pipe");
  const late = setTimeout(() => child.kill("SIGKILL"), STARTS_WITHIN_MS);
  const said: string[] = [];
  try {
    for await (const line of createInterface({ input: stderr })) {
      const address = /^DevTools listening on (ws:\S+)/.exec(line)?.[1];
      if (address !== undefined) {
        stderr.resume(); // or it would block once the pipe is full
        return address;
      }
      said.push(line);
    }
  } finally {
    clearTimeout(late);
  }
  throw new Error(`Chromium did not start:\n${said.join("\n")}`);
}

interface Connection {
  send<T = unknown>(method: string, params?: object, session?: string): Promise<T>;
  on(session: string, listen: (method: string, params: Record<string, unknown>) => void): void;
}

interface Message {
  readonly id?: number;
  readonly sessionId?: string;
  readonly method?: string;
  readonly params?: Record<string, unknown>;
  readonly result?: unknown;
  readonly error?: { readonly message: string };
}

async function connect(address: string): Promise<Connection> {
  const socket = new WebSocket(address);
  await new Promise<void>((resolve, reject) => {
    socket.addEventListener("open", () => resolve());
    socket.addEventListener("error", () => reject(new Error(`cannot connect to ${address}`)));
  });
  const waiting = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  const listeners = new Map<string, (method: string, params: Record<string, unknown>) => void>();
  let sent = 0;
  socket.addEventListener("message", ({ data }) => {
    const { id, sessionId, method, params, result, error } = JSON.parse(String(data)) as Message;
    if (id !== undefined) {
      const asked = waiting.get(id);
      waiting.delete(id);
      if (error) asked?.reject(new Error(error.message));
      else asked?.resolve(result);
    } else if (method !== undefined && params !== undefined) listeners.get(sessionId ?? "")?.(method, params);
  });
  socket.addEventListener("close", () => {
    for (const { reject } of waiting.values()) reject(new Error("Chromium has gone"));
    waiting.clear();
  });
  return {
    send<T>(method: string, params: object = {}, session?: string): Promise<T> {
      sent += 1;
      const id = sent;
      return new Promise<T>((resolve, reject) => {
        const late = setTimeout(() => reject(new Error(`${method}: no answer`)), ANSWERS_WITHIN_MS);
        const settled =
          <V>(then: (value: V) => void) =>
          (value: V): void => {
            clearTimeout(late);
            then(value);
          };
        waiting.set(id, { resolve: settled((value) => resolve(value as T)), reject: settled(reject) });
        socket.send(JSON.stringify({ id, method, params, ...(session !== undefined && { sessionId: session }) }));
      });
    },
    on: (session, listen) => listeners.set(session, listen),
  };
}

/** What a page's policy refuses is an event of the page; it becomes an error of the console, with the rest. */
const REPORT_VIOLATIONS = `addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI, sample }) =>
  console.error("policy refused: " + violatedDirective + " " + blockedURI + " " + sample));`;

async function openTab(connection: Connection): Promise<Tab> {
  const { targetId } = await connection.send<{ targetId: string }>("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await connection.send<{ sessionId: string }>("Target.attachToTarget", {
    targetId,
    flatten: true,
  });
  const send = <T = unknown>(method: string, params: object = {}): Promise<T> =>
    connection.send<T>(method, params, sessionId);
  const problems: string[] = [];
  let loaded: (() => void) | null = null;
  connection.on(sessionId, (method, params) => {
    if (method === "Page.loadEventFired") loaded?.();
    const problem = problemIn(method, params);
    if (problem !== null) problems.push(problem);
  });
  for (const domain of ["Page", "Runtime", "Log"]) await send(`${domain}.enable`);
  await send("Page.addScriptToEvaluateOnNewDocument", { source: REPORT_VIOLATIONS });

  async function evaluate<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = await send<{ result: { value: T }; exceptionDetails?: object }>(
      "Runtime.evaluate",
      { expression, awaitPromise: true, returnByValue: true },
    );
    if (exceptionDetails) throw new Error(`${expression}: ${JSON.stringify(exceptionDetails)}`);
    return result.value;
  }
  return {
    problems,
    evaluate,
    async go(url) {
      const done = new Promise<void>((resolve) => {
        loaded = resolve;
      });
      await send("Page.navigate", { url });
      await done;
    },
    async until(expression) {
      const endMs = Date.now() + HOLDS_WITHIN_MS;
      while (!(await evaluate<boolean>(expression).catch(() => false))) {
        if (Date.now() > endMs) {
          throw new Error(
            `did not come true: ${expression}\n${problems.join("\n")}\n${await evaluate<string>("document.body.innerText")}`,
          );
        }
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    },
    async appear({ width, height, scheme, phone = false }) {
      await send("Emulation.setDeviceMetricsOverride", {
        width,
        height,
        deviceScaleFactor: phone ? 2 : 1,
        mobile: phone,
      });
      await send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
    },
    async screenshot(file, { whole = false } = {}) {
      const { data } = await send<{ data: string }>("Page.captureScreenshot", { captureBeyondViewport: whole });
      await writeFile(file, Buffer.from(data, "base64"));
    },
    async press(key) {
      for (const type of ["keyDown", "keyUp"])
        await send("Input.dispatchKeyEvent", { type, key, code: key, ...KEYS[key] });
    },
  };
}

function problemIn(method: string, params: Record<string, unknown>): string | null {
  if (method === "Runtime.exceptionThrown") return JSON.stringify(params["exceptionDetails"]);
  if (method === "Runtime.consoleAPICalled" && ["error", "warning", "assert"].includes(String(params["type"]))) {
    return `console: ${JSON.stringify(params["args"])}`;
  }
  if (method === "Log.entryAdded") {
    const { level, text, url } = params["entry"] as { level: string; text: string; url?: string };
    if (level === "error" || level === "warning") return `log: ${text} ${url ?? ""}`;
  }
  return null;
}
