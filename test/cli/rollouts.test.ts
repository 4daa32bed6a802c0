/** `predict` and `rollouts …` as a customer runs them: what is printed, what is written, and how they end. */
import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { resolve } from "node:path";
import { promisify } from "node:util";

import ffmpeg from "@ffmpeg-installer/ffmpeg";
import sharp from "sharp";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";

import { noteRunningServer } from "#cli/running-server.ts";
import { countFrames } from "#cli/video-frames.ts";
import { mils } from "#contract/mils.ts";
import type { Service } from "#platform/lifecycle.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";
import { assertBooksBalance } from "#test/support/ledger.ts";

import { eventually } from "../queue/test-queue.ts";
import { run, start, type Started } from "./command.ts";
import { type CustomerShell, linesOf, openShell } from "./customer-run.ts";

vi.setConfig({ testTimeout: 120_000 });

let t: TestGateway;
let server: Service & { readonly url: string };
let shell: CustomerShell;
let customer: string;
beforeAll(async () => {
  t = await startTestGateway();
  server = await t.listen();
});
afterAll(async () => {
  await assertBooksBalance(t.db);
  await t.stop();
});
beforeEach(async () => {
  t.worker.fate = "succeed";
  const key = await t.newKey(mils(10_000));
  customer = key.customer_id;
  shell = await openShell(server.url, key.api_key);
});
afterEach(() => shell.remove());

const INPUTS = ["--frame", "frame.png", "--actions", "actions.npy"];
const submit = async (...args: string[]): Promise<string> =>
  (await shell.run("predict", ...INPUTS, "--async", ...args)).stdout.trim();
const balance = async (): Promise<bigint | undefined> =>
  (
    await t.db.query<{ balance_mils: bigint }>(
      "SELECT balance_mils FROM accounts WHERE customer_id = $1 AND account = 'balance'",
      [customer],
    )
  )[0]?.balance_mils;

/** Presses Ctrl-C once the command has said `words`; resolves with its exit code. */
async function interrupt({ child, stderr }: Started, words: string): Promise<number | null> {
  await eventually(async () => stderr().includes(words), 60_000);
  const closed = once(child, "close");
  child.kill("SIGINT");
  const [code] = (await closed) as [number | null];
  return code;
}

describe("predict", () => {
  test("writes a whole video and says what it was", async () => {
    const { code, stdout } = await shell.run("predict", ...INPUTS, "--out", "first.mp4");
    expect({ code, stdout }).toEqual({
      code: 0,
      stdout: expect.stringMatching(
        /^first\.mp4: 49 frames, \$0\.0245, engine \d+ ms, total \d+ ms \(rollout_[0-9a-f]{32}, req_/,
      ),
    });
    expect(await countFrames(ffmpeg.path, shell.path("first.mp4"))).toBe(49);
    expect((await readdir(shell.folder)).filter((name) => name.endsWith(".part"))).toEqual([]);
  });

  test("--json prints one document, a seed of 64 bits digit by digit", async () => {
    const seed = "18446744073709551615";
    const { code, stdout, stderr } = await shell.run("predict", ...INPUTS, "--seed", seed, "--json");
    expect({ code, stderr }).toEqual({
      code: 0,
      stderr: expect.stringMatching(/^submitted rollout_\w+; Ctrl-C cancels it\n$/),
    });
    expect(stdout).toContain(`"seed": ${seed}`);
    expect(JSON.parse(stdout)).toMatchObject({
      object: "rollout",
      status: "succeeded",
      file: "rollout.mp4",
      mode: "async",
    });
  });

  test("--contact-sheet makes an image of its frames", async () => {
    await shell.json(0, "predict", ...INPUTS, "--contact-sheet", "sheet.png");
    const { width, height } = await sharp(shell.path("sheet.png")).metadata();
    expect({ width, height }).toEqual({ width: 8 * 132 + 4, height: 154 });
    // The scripted worker's frames are of one grey; so is each tile, all over.
    for (const column of [0, 7]) {
      const tile = { left: 5 + column * 132, top: 24, width: 126, height: 124 };
      const { channels } = await sharp(await sharp(shell.path("sheet.png")).extract(tile).toBuffer()).stats();
      expect(channels.map(({ mean, stdev }) => [mean > 80 && mean < 95, stdev < 1])).toEqual(
        [true, true, true].map((yes) => [yes, yes]),
      );
    }
  });

  test("--score says how close the video is to that of the base spec, here and where the rollout is shown", async () => {
    const { code, stdout } = await shell.run("predict", ...INPUTS, "--score");
    const score = "PSNR 41.25 dB, SSIM 0.9875, LPIPS 0.0125";
    expect({ code, stdout }).toEqual({
      code: 0,
      stdout: expect.stringContaining(`49 frames, $0.0245, ${score}, engine `),
    });
    const [id = ""] = /rollout_[0-9a-f]{32}/.exec(stdout) ?? [];
    const [shown, waited, document] = await Promise.all([
      shell.run("rollouts", "get", id),
      shell.run("rollouts", "wait", id),
      shell.json(0, "rollouts", "get", id),
    ]);
    expect(shown.stdout).toContain(`Score    ${score}\n`);
    expect(waited.stdout).toBe(`${id} succeeded, $0.0245, ${score}\n`);
    expect(document).toMatchObject({ psnr_db: 41.25, ssim: 0.9875, lpips: 0.0125 });
  });

  test("--async prints the id and leaves; the same key submits nothing twice", async () => {
    t.worker.fate = "hang";
    const id = await submit("--idempotency-key", "night-1");
    expect(id).toMatch(/^rollout_[0-9a-f]{32}$/);
    expect(await submit("--idempotency-key", "night-1")).toBe(id);
    expect(await t.db.query("SELECT 1 FROM rollouts WHERE customer_id = $1", [customer])).toHaveLength(1);
  });

  test("a failed one ends with 3, says why, and cost nothing", async () => {
    t.worker.fate = { fail: "engine_failed" };
    const { code, stdout, stderr } = await shell.run("predict", ...INPUTS);
    expect({ code, stdout }).toEqual({ code: 3, stdout: "" });
    expect(stderr).toMatch(/failed \(engine_failed: .+\); it cost nothing \(req_/);
    expect(await balance()).toBe(10_000n);
    expect(await readdir(shell.folder)).not.toContain("rollout.mp4");
  });

  test("without the credits it ends with 4 and the server's words", async () => {
    const poor = await openShell(server.url, (await t.newKey(mils(100))).api_key);
    const { code, stdout, stderr } = await poor.run("predict", ...INPUTS, "--json");
    expect({ code, stdout }).toEqual({ code: 4, stdout: "" });
    expect(stderr).toMatch(/insufficient_credits: .+ \(402, req_[0-9a-f]+\)/);
    await poor.remove();
  });

  test("Ctrl-C cancels it: refunded, 130", async () => {
    t.worker.fate = "hang";
    const started = shell.start("predict", ...INPUTS);
    expect(await interrupt(started, "submitted rollout_")).toBe(130);
    expect(started.stderr()).toMatch(/Interrupted; rollout_[0-9a-f]{32} is cancelled\./);
    expect(started.stdout()).toBe("");
    expect(await balance()).toBe(10_000n);
  });
});

describe("rollouts", () => {
  test("list: a table for people, lines for programs, as many as asked for", async () => {
    const ids = [await submit("--seed", "1"), await submit("--seed", "2"), await submit("--seed", "3")].toReversed();
    await shell.run("rollouts", "wait", ...ids);
    const table = await shell.run("rollouts", "list");
    expect(table.stdout.split("\n")[0]).toMatch(/^ROLLOUT +CREATED \(UTC\) +MODEL +STATUS +FRAMES +COST$/);
    expect(table.stdout.match(/rollout_\w+/g)).toEqual(ids);
    expect(linesOf(await shell.run("rollouts", "list", "--all", "--json")).map(({ id }) => id)).toEqual(ids);
    expect(linesOf(await shell.run("rollouts", "list", "--limit", "2", "--json")).map(({ id }) => id)).toEqual(
      ids.slice(0, 2),
    );
    expect((await shell.run("rollouts", "list", "--status", "failed", "--json")).stdout).toBe("");
    expect((await shell.run("rollouts", "list", "--created-before", "2020-01-01", "--json")).stdout).toBe("");
  });

  test("get shows one; somebody else's is not there", async () => {
    const id = await submit();
    expect(await shell.json(0, "rollouts", "get", id)).toMatchObject({ id, object: "rollout" });
    expect((await shell.run("rollouts", "get", id)).stdout).toMatch(new RegExp(`^Rollout  ${id} \\(req_`));
    const stranger = await openShell(server.url, (await t.newKey()).api_key);
    const { code, stderr } = await stranger.run("rollouts", "get", id);
    expect(code).toBe(1);
    expect(stderr).toMatch(/rollout_not_found: .+ \(404, req_/);
    await stranger.remove();
  });

  test("wait prints each as it ends, and ends with 3 when one did not succeed", async () => {
    t.worker.fate = "hang";
    const good = await submit("--seed", "1");
    const waiting = shell.start("rollouts", "wait", good, "--json");
    await eventually(async () => t.worker.taken.includes(good as never), 60_000);
    await t.worker.finishHanging();
    expect(await once(waiting.child, "close")).toEqual([0, null]);
    expect(JSON.parse(waiting.stdout())).toMatchObject({ id: good, status: "succeeded" });

    t.worker.fate = { fail: "engine_failed" };
    const bad = await submit("--seed", "2");
    const both = await shell.run("rollouts", "wait", good, bad);
    expect(both.code).toBe(3);
    expect(both.stdout).toMatch(new RegExp(`${good} succeeded, \\$0\\.0245`));
    expect(both.stdout).toMatch(new RegExp(`${bad} failed \\(engine_failed: `));
  });

  test("Ctrl-C stops the waiting and not the rollout", async () => {
    t.worker.fate = "hang";
    const id = await submit();
    const waiting = shell.start("rollouts", "wait", id);
    expect(await interrupt(waiting, "Ctrl-C leaves")).toBe(130);
    expect(waiting.stderr()).toContain(`${id} goes on: rollouts wait ${id}`);
    await t.worker.finishHanging();
    expect(await shell.json(0, "rollouts", "wait", id)).toMatchObject({ status: "succeeded" });
  });

  test("wait tries again while its server is away, says so, and gives up with 1", async () => {
    t.worker.fate = "hang";
    const id = await submit();
    const first = await t.listen();
    const waiting = shell.start("rollouts", "wait", id, "--url", first.url, "--give-up-after", "1");
    await eventually(async () => t.worker.taken.includes(id as never), 60_000);
    await first.stop();
    // Nobody comes back on that port: it tries again, says so, and gives up.
    expect(await once(waiting.child, "close")).toEqual([1, null]);
    expect(waiting.stderr()).toMatch(/No answer from .+ Trying again …/);
    await t.worker.finishHanging();
  });

  test("cancel refunds; a finished one is told as such", async () => {
    t.worker.fate = "hang";
    const id = await submit();
    expect(await shell.json(0, "rollouts", "cancel", id)).toMatchObject({ id, status: "cancelled" });
    expect(await balance()).toBe(10_000n);
    expect((await shell.run("rollouts", "cancel", id)).code).toBe(0); // and again
    t.worker.fate = "succeed";
    const done = await submit("--seed", "9");
    await shell.run("rollouts", "wait", done);
    const { code, stderr } = await shell.run("rollouts", "cancel", done);
    expect(code).toBe(1);
    expect(stderr).toMatch(/rollout_finished: .*succeeded/);
  });

  test("save writes the video of a finished one, and says of another why there is none", async () => {
    t.worker.fate = "hang";
    const id = await submit();
    const early = await shell.run("rollouts", "save", id);
    expect(early).toMatchObject({ code: 1, stdout: "" });
    expect(early.stderr).toMatch(/has no video to save: it is (queued|running)/);
    await t.worker.finishHanging();
    await shell.run("rollouts", "wait", id);
    expect((await shell.run("rollouts", "save", id)).stdout).toBe(`${id}.mp4\n`);
    expect(await countFrames(ffmpeg.path, shell.path(`${id}.mp4`))).toBe(49);
    expect(await shell.json(0, "rollouts", "save", id, "--out", "other.mp4")).toMatchObject({ files: ["other.mp4"] });
    expect(await readFile(shell.path("other.mp4"))).toEqual(await readFile(shell.path(`${id}.mp4`)));
    const nowhere = await shell.run("rollouts", "save", id, "--out", "no/such/folder.mp4");
    expect(nowhere.code).toBe(1);
    expect(nowhere.stderr).toMatch(/Cannot write .+ENOENT/);
  });
});

describe("where the server is", () => {
  const PROGRAM = resolve("src/cli/main.ts");
  /** In the shell's folder, without an address; `port` is what the default one would be. */
  function waitFor(id: string, port: number): Started {
    const { PUBLIC_URL: _given, ...env } = shell.env;
    const args = [PROGRAM, "rollouts", "wait", id, "--give-up-after", "60"];
    return start(args, { ...env, PORT: String(port) }, shell.folder);
  }
  beforeEach(() => mkdir(shell.path("data")));

  test("a command that began before the server came up finds it at its own port", async () => {
    const id = await submit();
    const waiting = waitFor(id, 9);
    await eventually(async () => waiting.stderr().includes("Trying again"), 60_000);
    await noteRunningServer(shell.path("data"), server.url);
    expect(await once(waiting.child, "close")).toEqual([0, null]);
    expect(waiting.stdout()).toContain(`${id} succeeded`);
  });

  test.for([
    ["predict", ...INPUTS],
    ["rollouts", "list"],
    ["datasets", "list"],
    ["webhooks", "list"],
  ])("after a normal stop of the server, %s says what to do, and ends with 1", async (args) => {
    const server = createServer();
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const { port } = server.address() as AddressInfo;
    const url = `http://127.0.0.1:${port}`;
    const removeNote = await noteRunningServer(shell.path("data"), url);
    await new Promise((done) => server.close(done));
    await removeNote();
    const { PUBLIC_URL: _given, ...env } = shell.env;
    const ran = await run([PROGRAM, ...args, "--give-up-after", "0"], { ...env, PORT: String(port) }, shell.folder);
    expect({ code: ran.code, stdout: ran.stdout }).toEqual({ code: 1, stdout: "" });
    expect(ran.stderr.trim()).toMatch(
      new RegExp(
        `^No answer from ${url}/v1/\\S+: no server runs there\\. Start it \\(npm start\\), or name the one that runs by --url, or by PUBLIC_URL in the environment\\.$`,
      ),
    );
  });

  test("nobody at the default address gets the key while the server that was killed is away", async () => {
    const id = await submit();
    let asked = 0;
    const stranger = createServer((_request, response) => {
      asked++;
      response.writeHead(503).end();
    });
    await new Promise<void>((done) => stranger.listen(0, "127.0.0.1", done));
    const killed = { pid: process.pid, started: "another time", url: "http://127.0.0.1:18080" };
    await writeFile(shell.path("data/serve.json"), JSON.stringify(killed));
    const waiting = waitFor(id, (stranger.address() as AddressInfo).port);
    await eventually(async () => waiting.stderr().includes("Trying again"), 60_000);
    expect(waiting.stderr()).toMatch(/The server of .+data \(last at http:\/\/127\.0\.0\.1:18080\) does not run\./);
    await noteRunningServer(shell.path("data"), server.url);
    expect(await once(waiting.child, "close")).toEqual([0, null]);
    expect(asked).toBe(0);
    stranger.close();
  });
});

test("under npm run, files are those of the folder where its user stands", async () => {
  const execute = promisify(execFile);
  const npm = async (...args: string[]): Promise<string> => {
    const all = ["--prefix", resolve("."), "run", "--silent", "dream-engine", "--", ...args];
    const env = { PATH: process.env["PATH"], HOME: process.env["HOME"], ...shell.env };
    return (await execute("npm", all, { cwd: shell.path("sub"), env })).stdout;
  };
  await mkdir(shell.path("sub"));
  const inputs = ["--frame", "../frame.png", "--actions", "../actions.npy"];
  const before = await readdir(".");
  await npm("predict", ...inputs, "--out", "a.mp4", "--contact-sheet", "a.png");
  const id = (await npm("predict", ...inputs, "--seed", "1", "--async")).trim();
  await npm("rollouts", "wait", id);
  expect(await npm("rollouts", "save", id)).toBe(`${shell.path(`sub/${id}.mp4`)}\n`);
  expect((await readdir(shell.path("sub"))).toSorted()).toEqual(["a.mp4", "a.png", `${id}.mp4`]);
  expect(await readdir(".")).toEqual(before);
  await expect(npm("predict", "--frame", "no.png", "--actions", "../actions.npy")).rejects.toThrow(
    `Cannot read ${shell.path("sub/no.png")}: there is no such file or folder (ENOENT).`,
  );
});

describe("how a command ends", () => {
  test.each([
    [["predict"], 2, /required option '--frame/],
    [["predict", ...INPUTS, "--seed", "x"], 2, /whole number of 64 bits/],
    [["rollouts"], 2, /Usage/],
    [["rollouts", "wait"], 2, /missing required argument 'id'/],
    [["rollouts", "list", "--limit", "0"], 2, /whole number from 1/],
    [["rollouts", "list", "--created-after", "yesterday"], 2, /a time such as/],
    [["rollouts", "nonsense"], 2, /unknown command/],
    [["nonsense"], 2, /unknown command/],
    [["--nonsense"], 2, /unknown option/],
    [
      ["predict", "--frame", "missing.png", "--actions", "actions.npy"],
      1,
      /Cannot read \/.+\/missing\.png: there is no such file or folder \(ENOENT\)/,
    ],
    [["rollouts", "get", "rollout_1"], 1, /rollout_not_found/],
    [["rollouts", "list", "--key", "dre_wrong"], 1, /malformed_key: .+ \(401, req_/],
    [
      ["rollouts", "list", "--url", "http://127.0.0.1:9", "--give-up-after", "0"],
      1,
      /No answer from .+Is the server running/,
    ],
  ])("%s ends with %i", async (args, code, message) => {
    const ran = await shell.run(...args);
    expect(ran.stderr).toMatch(message);
    expect(ran.stderr).not.toMatch(/\n\s+at /); // no stack for what a person typed
    expect({ code: ran.code, stdout: ran.stdout }).toEqual({ code, stdout: "" });
  });

  test("--help is no error", async () => {
    expect(await shell.run("rollouts", "--help")).toMatchObject({ code: 0, stderr: "" });
  });
});
