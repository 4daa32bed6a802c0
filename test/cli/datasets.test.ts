/** `datasets …` as a customer runs them, against a real gateway with a runner: what is printed, written, and how they end. */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { copyFile, mkdir, readdir, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";

import ffmpeg from "@ffmpeg-installer/ffmpeg";
import { Registry } from "prom-client";
import sharp from "sharp";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";

import { countFrames } from "#cli/video-frames.ts";
import { blobKeys } from "#contract/jobs.ts";
import { mils } from "#contract/mils.ts";
import { systemClock } from "#platform/clock.ts";
import type { Service } from "#platform/lifecycle.ts";
import { createOutbound } from "#platform/outbound.ts";
import { ARM, PUSHER } from "#test/gateway/support/models.ts";
import { framePng } from "#test/gateway/support/requests.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";
import { assertBooksBalance } from "#test/support/ledger.ts";
import { silentLog } from "#test/support/postgres.ts";
import { startRunner } from "#workers/runner/runner.ts";

import { eventually } from "../queue/test-queue.ts";
import { run, type Started } from "./command.ts";
import { type CustomerShell, linesOf, openShell } from "./customer-run.ts";

vi.setConfig({ testTimeout: 180_000 });

let t: TestGateway;
let server: Service & { readonly url: string };
let runner: Service;
let shell: CustomerShell;
beforeAll(async () => {
  t = await startTestGateway();
  server = await t.listen();
  runner = await startRunner({
    db: t.as("runner"),
    queues: t.queues,
    blobs: t.blobs,
    models: [PUSHER, ARM],
    outbound: createOutbound({ allowPrivate: true }),
    backlog: { per_customer: 10_000, all: 100_000 },
    clock: systemClock,
    random: randomBytes,
    log: silentLog,
    registry: new Registry(),
  });
});
afterAll(async () => {
  await runner.stop();
  await assertBooksBalance(t.db);
  await t.stop();
});
beforeEach(async () => {
  t.worker.fate = "succeed";
  t.worker.paddingBytes = 0;
  const key = await t.newKey(mils(100_000));
  shell = await openShell(server.url, key.api_key);
});
afterEach(async () => {
  await t.worker.finishHanging();
  await shell.remove();
});

const ACTION = [0.5, -0.5];
const FRAME = (await framePng()).toString("base64");
const row = (id: string, more: object = {}): string =>
  JSON.stringify({
    id,
    start_frame: { base64: FRAME },
    actions: Array.from({ length: 12 }, () => ACTION),
    ...more,
  });

/** `count` rows ep-0001 …, 13 frames and 65 mils each. */
async function writeManifest(name: string, count: number, extra: readonly string[] = []): Promise<void> {
  const rows = Array.from({ length: count }, (_unused, index) => row(`ep-${String(index + 1).padStart(4, "0")}`));
  await writeFile(shell.path(name), [...rows, ...extra].join("\n"));
}

async function created(...args: string[]): Promise<string> {
  return String((await shell.json(0, "datasets", "create", ...args))["id"]);
}

const videosIn = async (folder: string): Promise<string[]> =>
  (await readdir(shell.path(`${folder}/videos`)).catch(() => [])).filter((name) => !name.startsWith(".")).sort();

/** Presses Ctrl-C once the command has said `words`; resolves with its exit code. */
async function interrupt({ child, stdout, stderr }: Started, words: RegExp): Promise<number | null> {
  await eventually(async () => words.test(stdout() + stderr()), 60_000);
  const closed = once(child, "close");
  child.kill("SIGINT");
  const [code] = (await closed) as [number | null];
  return code;
}

const BIG_BYTES = 512 * 1024 * 1024;

/** The most memory that a process has had, as Linux counts it. */
async function peakOf(pid: number | undefined): Promise<number> {
  const text = await readFile(`/proc/${pid}/status`, "utf8").catch(() => ""); // it has just ended
  return Number(/VmHWM:\s+(\d+) kB/.exec(text)?.[1] ?? 0) * 1024;
}

describe("create", () => {
  test("of a manifest: estimate and bad rows are shown, the rest goes on", async () => {
    await writeManifest("m.jsonl", 3, [row("ep-0002"), "{", row("bad", { seed: "x" })]);
    const { code, stdout, stderr } = await shell.run(
      "datasets",
      "create",
      "m.jsonl",
      "--name",
      "kitchen",
      "--no-start",
    );
    expect(code).toBe(0);
    expect(stdout).toMatch(/^Dataset   dataset_[0-9a-f]{32} · kitchen$/m);
    expect(stdout).toMatch(/^State     ready$/m);
    expect(stdout).toMatch(/^Rows      6: 3 invalid, 3 pending$/m);
    expect(stdout).toMatch(/^Estimate  \$0\.0195 at 5 mils a frame$/m);
    expect(stderr).toMatch(/^LINE +ROW +CODE +WHAT$/m);
    expect(stderr).toMatch(/^4 +ep-0002 +duplicate_id +.*line 2$/m);
    expect(stderr).toMatch(/^6 +bad +invalid_input +.*seed/m);
  });

  test("--on-invalid reject keeps nothing and lists what was wrong", async () => {
    await writeManifest("m.jsonl", 1, ["{"]);
    const { code, stdout, stderr } = await shell.run(
      "datasets",
      "create",
      "m.jsonl",
      "--on-invalid",
      "reject",
      "--json",
    );
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(/^2 +\w+ +/m);
    expect(stderr).toMatch(/dataset_rejected: .+ \(422, req_/);
  });

  test("of a folder, sent as a tar: frames with their actions, in folders too", async () => {
    await mkdir(shell.path("frames/day-2"), { recursive: true });
    for (const id of ["a", "day-2/b"]) {
      await copyFile(shell.path("frame.png"), shell.path(`frames/${id}.png`));
      await copyFile(shell.path("actions.npy"), shell.path(`frames/${id}.npy`));
    }
    await writeFile(shell.path("frames/.DS_Store"), "x");
    await writeFile(shell.path("frames/notes.txt"), "x");
    const { code, stdout, stderr } = await shell.run("datasets", "create", "frames", "--watch", "--no-start");
    expect({ code, stderr }).toEqual({ code: 3, stderr: expect.stringMatching(/^1 file of frames left out/m) }); // nobody started it
    expect(stdout).toMatch(/^Rows      2: 2 pending$/m);
    const [dataset = {}] = linesOf(await shell.run("datasets", "list", "--json"));
    const rows = linesOf(await shell.run("datasets", "rows", String(dataset["id"]), "--json"));
    expect(rows.map(({ id, num_actions }) => [id, num_actions])).toEqual([
      ["a", 48],
      ["b", 48],
    ]);
  });

  test("the same idempotency key makes one dataset", async () => {
    await writeManifest("m.jsonl", 2);
    const args = ["m.jsonl", "--no-start", "--idempotency-key", "evening"];
    expect(await created(...args)).toBe(await created(...args));
    expect(linesOf(await shell.run("datasets", "list", "--json"))).toHaveLength(1);
  });

  test("a key without credits ends with 4 before the upload", async () => {
    await writeManifest("m.jsonl", 1);
    const poor = await openShell(server.url, (await t.newKey(mils(0))).api_key);
    await writeFile(poor.path("m.jsonl"), await readFile(shell.path("m.jsonl")));
    const { code, stderr } = await poor.run("datasets", "create", "m.jsonl");
    expect(code).toBe(4);
    expect(stderr).toMatch(/insufficient_credits: /);
    await poor.remove();
  });

  test("an archive of half a gigabyte takes no memory, and a refusal breaks it off", async () => {
    await writeFile(shell.path("big.zip"), Buffer.from("PK\u0003\u0004"));
    await truncate(shell.path("big.zip"), BIG_BYTES);
    const sending = shell.start("datasets", "create", "big.zip");
    const closed = once(sending.child, "close");
    let peakBytes = 0;
    const timer = setInterval(() => {
      void peakOf(sending.child.pid).then((bytes) => (peakBytes = Math.max(peakBytes, bytes)));
    }, 50);
    expect(await closed).toEqual([1, null]);
    clearInterval(timer);
    expect(sending.stderr()).toMatch(/dataset_rejected: .+ \(422, req_/); // it has no entries, which its end would have told
    expect(peakBytes).toBeGreaterThan(20_000_000); // it was measured at all
    expect(peakBytes).toBeLessThan(BIG_BYTES / 2);

    const refused = await shell.run("datasets", "create", "big.zip", "--key", `dre_${"a".repeat(43)}`);
    expect(refused).toMatchObject({ code: 1, stdout: "" });
    expect(refused.stderr).toMatch(/(malformed|unknown)_key: .+ \(401, req_/);
  });

  test("what is no dataset is told so without a call", async () => {
    await writeFile(shell.path("notes.txt"), "hello");
    await mkdir(shell.path("empty"));
    for (const [source, message] of [
      ["notes.txt", /is no dataset: expected a manifest/],
      ["empty", /has neither frames .+ nor actions/],
      ["missing", /Cannot read \/.+\/missing: there is no such file or folder \(ENOENT\)/],
    ] as const) {
      const { code, stderr } = await shell.run("datasets", "create", source);
      expect(stderr).toMatch(message);
      expect(code).toBe(1);
    }
    expect((await shell.run("datasets", "create", "m.jsonl", "--on-invalid", "maybe")).code).toBe(2);
    expect((await shell.run("datasets", "create", "m.jsonl", "--budget", "1.23456")).code).toBe(2);
  });
});

describe("watch", () => {
  test("to the end: plain lines, a summary, a contact sheet; 3 because of the bad row", async () => {
    await writeManifest("m.jsonl", 5, ["{"]);
    const { code, stdout } = await shell.run("datasets", "create", "m.jsonl", "--watch");
    expect(code).toBe(3);
    expect(stdout).toMatch(/completed · 5 of 5 rows \(6: 1 invalid, 5 succeeded\) · spent \$0\.0325 · held \$0\.0000/);
    expect(stdout).not.toContain("not measured");
    const sheet = /^Sheet     (dataset_\w+\.png)$/m.exec(stdout)?.[1] ?? "none";
    expect(await sharp(shell.path(sheet)).metadata()).toMatchObject({ format: "png", height: 5 * 150 + 4 });
  });

  test("--json prints the last envelope alone; 0 when every row succeeded", async () => {
    await writeManifest("m.jsonl", 2);
    const id = await created("m.jsonl");
    const done = await shell.json(0, "datasets", "watch", id, "--contact-sheet", "s.png");
    expect(done).toMatchObject({ id, state: "completed", rows: { succeeded: 2 }, contact_sheet: "s.png" });
    expect((await stat(shell.path("s.png"))).size).toBeGreaterThan(500);
    expect(await shell.json(0, "datasets", "watch", id, "--no-contact-sheet")).toMatchObject({ contact_sheet: null });
  });

  test("create --watch takes what watch takes", async () => {
    await writeManifest("m.jsonl", 1);
    const args = ["datasets", "create", "m.jsonl", "--watch"];
    expect(await shell.json(0, ...args, "--contact-sheet", "s.png")).toMatchObject({ contact_sheet: "s.png" });
    expect((await stat(shell.path("s.png"))).size).toBeGreaterThan(500);
    expect(await shell.json(0, ...args, "--no-contact-sheet")).toMatchObject({ contact_sheet: null });
  });

  test("ends with 4 when the credits run out, with 3 when its budget does", async () => {
    const short = await openShell(server.url, (await t.newKey(mils(140))).api_key);
    await writeManifest("m.jsonl", 4);
    await writeFile(short.path("m.jsonl"), await readFile(shell.path("m.jsonl")));
    const { code, stdout } = await short.run("datasets", "create", "m.jsonl", "--watch");
    expect(stdout).toMatch(/^State     paused \(insufficient_credits\)/m);
    expect(code).toBe(4);
    await short.remove();

    const capped = await shell.run("datasets", "create", "m.jsonl", "--budget", "0.0140", "--watch");
    expect(capped.stdout).toMatch(/^State     paused \(budget_reached\)/m);
    expect(capped.code).toBe(3);
  });

  test("Ctrl-C stops the watching and not the dataset", async () => {
    t.worker.fate = "hang";
    await writeManifest("m.jsonl", 2);
    const id = await created("m.jsonl");
    const watching = shell.start("datasets", "watch", id);
    expect(await interrupt(watching, /2 running/)).toBe(130);
    expect(watching.stderr()).toContain(`the dataset goes on: datasets watch ${id}`);
    t.worker.fate = "succeed";
    await t.worker.finishHanging();
    expect(await shell.json(0, "datasets", "watch", id)).toMatchObject({ state: "completed" });
  });

  test("a server that stays away ends it with 1", async () => {
    t.worker.fate = "hang";
    await writeManifest("m.jsonl", 1);
    const id = await created("m.jsonl");
    const other = await t.listen();
    const watching = shell.start("datasets", "watch", id, "--url", other.url, "--give-up-after", "1");
    await eventually(async () => watching.stdout().includes("running"), 60_000);
    const closed = once(watching.child, "close");
    await other.stop();
    expect(await closed).toEqual([1, null]);
    expect(watching.stderr()).toMatch(/No answer from .+Trying again …/);
  });
});

describe("pause, resume, retry, cancel", () => {
  test("each says what state the dataset is in, and a wrong state is told", async () => {
    t.worker.fate = "hang";
    await writeManifest("m.jsonl", 2);
    const id = await created("m.jsonl");
    expect(await shell.json(0, "datasets", "pause", id)).toMatchObject({ state: "paused", pause_reason: "requested" });
    expect((await shell.run("datasets", "pause", id)).stdout).toMatch(/ is paused \(requested\): you paused it/);
    expect(await shell.json(0, "datasets", "resume", id, "--budget", "5")).toMatchObject({
      state: "running",
      cost: { budget_mils: 50_000 },
    });
    expect((await shell.run("datasets", "cancel", id)).stdout).toMatch(new RegExp(`^${id} is cancel`));
    const ended = await shell.json(3, "datasets", "watch", id);
    expect(ended).toMatchObject({ state: "cancelled", rows: { cancelled: 2 }, cost: { spent_mils: 0 } });
    const late = await shell.run("datasets", "resume", id);
    expect(late.code).toBe(1);
    expect(late.stderr).toMatch(/wrong_state: .*cancelled.* \(409, req_/);
  });

  test("retry runs failed rows again; rows tells them from the others", async () => {
    t.worker.fate = { fail: "engine_failed" };
    await writeManifest("m.jsonl", 2);
    const id = await created("m.jsonl");
    expect(await shell.json(3, "datasets", "watch", id)).toMatchObject({ rows: { failed: 2 }, contact_sheet: null });
    const failed = await shell.run("datasets", "rows", id, "--state", "failed");
    expect(failed.stdout).toMatch(/^LINE +ROW +STATE +FRAMES +COST +WHY$/m);
    expect(failed.stdout).toMatch(/^1 +ep-0001 +failed +0 +\$0\.0000 +engine_failed: /m);
    t.worker.fate = "succeed";
    expect((await shell.run("datasets", "retry", id)).stdout).toBe(`${id} is running: datasets watch ${id}\n`);
    expect(await shell.json(0, "datasets", "watch", id, "--no-contact-sheet")).toMatchObject({
      rows: { succeeded: 2 },
    });
    expect((await shell.run("datasets", "rows", id, "--state", "failed", "--json")).stdout).toBe("");
    expect(linesOf(await shell.run("datasets", "rows", id, "--limit", "1", "--json"))).toHaveLength(1);
  });
});

describe("download", () => {
  test("brings every video and the metadata; a second run brings nothing twice", async () => {
    await writeManifest("m.jsonl", 4, ["{"]);
    const id = await created("m.jsonl");
    await shell.json(3, "datasets", "watch", id, "--no-contact-sheet");
    const { code, stdout } = await shell.run("datasets", "download", id, "--out", "out");
    expect(code).toBe(0);
    expect(stdout).toMatch(/^out: 4 videos downloaded \(.+\), 0 were there already\.\n1 of 5 rows have no video/);
    expect(await videosIn("out")).toEqual(["ep-0001.mp4", "ep-0002.mp4", "ep-0003.mp4", "ep-0004.mp4"]);
    expect(await countFrames(ffmpeg.path, shell.path("out/videos/ep-0003.mp4"))).toBe(13);

    const records = (await readFile(shell.path("out/results.jsonl"), "utf8")).trim().split("\n");
    expect(records.map((line) => (JSON.parse(line) as { file_name: string | null }).file_name)).toEqual([
      ...["1", "2", "3", "4"].map((n) => `videos/ep-000${n}.mp4`),
      null,
    ]);
    // Signed links are not for a folder that is passed on; the records are those that the store keeps.
    expect(records.filter((line) => "video_url" in (JSON.parse(line) as object))).toEqual([]);
    for (const format of ["jsonl", "parquet"] as const) {
      const stored = await t.blobs.get(blobKeys.datasetResults(id, format));
      expect((await readFile(shell.path(`out/results.${format}`))).equals(stored), format).toBe(true);
    }
    // As the store has it, so that the folder is loaded as that one is.
    const metadata = await readFile(shell.path("out/metadata.parquet"));
    expect(metadata.equals(await t.blobs.get(blobKeys.datasetMetadata(id)))).toBe(true);
    expect((await readdir(shell.path("out"))).toSorted()).toEqual([
      ".dream-dataset.json",
      "metadata.parquet",
      "results.jsonl",
      "results.parquet",
      "videos",
    ]);
    expect((await readdir(shell.path("out"))).filter((name) => name.endsWith(".part"))).toEqual([]);

    expect(await shell.json(0, "datasets", "download", id, "--out", "out")).toMatchObject({
      complete: true,
      videos: { downloaded: 0, present: 4, failed: 0, bytes: 0 },
    });
  });

  test("killed midway it leaves whole files only, and goes on where it was", async () => {
    t.worker.paddingBytes = 24 * 1024 * 1024;
    await writeManifest("m.jsonl", 6);
    const id = await created("m.jsonl");
    await shell.json(0, "datasets", "watch", id, "--no-contact-sheet");
    const sizes = new Map<string, number>();
    for (const item of linesOf(await shell.run("datasets", "rows", id, "--json"))) {
      sizes.set(`${String(item["id"])}.mp4`, Number(item["video_bytes"]));
    }
    const total = [...sizes.values()].reduce((sum, bytes) => sum + bytes, 0);

    const started = shell.start("datasets", "download", id, "--out", "out", "--parallel", "1");
    // After the second whole file, in the middle of another one.
    const part = await eventually(async () => {
      if ((await videosIn("out")).length < 2) return null;
      for (const name of await readdir(shell.path("out/videos"))) {
        const file = shell.path(join("out/videos", name));
        if (name.endsWith(".part") && ((await stat(file).catch(() => null))?.size ?? 0) > 0) return file;
      }
      return null;
    }, 60_000);
    const closed = once(started.child, "close");
    started.child.kill("SIGKILL");
    await closed;
    const kept = (await stat(part).catch(() => null))?.size ?? 0;
    const whole = await videosIn("out");
    expect(whole.length).toBeLessThan(6);
    for (const name of whole) expect((await stat(shell.path(`out/videos/${name}`))).size).toBe(sizes.get(name));

    const again = await shell.json(0, "datasets", "download", id, "--out", "out");
    const before = whole.reduce((sum, name) => sum + (sizes.get(name) ?? 0), 0);
    expect(again).toMatchObject({
      videos: { downloaded: 6 - whole.length, present: whole.length, bytes: total - before - kept },
    });
    for (const name of sizes.keys()) {
      const stored = await t.blobs.get(blobKeys.datasetVideo(id, name.replace(".mp4", "")));
      expect((await readFile(shell.path(`out/videos/${name}`))).equals(stored)).toBe(true);
    }
    expect((await readdir(shell.path("out/videos"))).filter((name) => name.endsWith(".part"))).toEqual([]);
  });

  test("a file of another size is replaced, a torn partial one is not believed", async () => {
    await writeManifest("m.jsonl", 2);
    const id = await created("m.jsonl");
    await shell.json(0, "datasets", "watch", id, "--no-contact-sheet");
    await mkdir(shell.path("out/videos"), { recursive: true });
    await writeFile(shell.path("out/videos/ep-0001.mp4"), "torn");
    expect(await shell.json(0, "datasets", "download", id, "--out", "out")).toMatchObject({
      videos: { downloaded: 2 },
    });
    expect(await countFrames(ffmpeg.path, shell.path("out/videos/ep-0001.mp4"))).toBe(13);
  });

  test("works while the dataset runs, and brings the rest later; another dataset's folder is refused", async () => {
    await writeManifest("m.jsonl", 3);
    const id = await created("m.jsonl", "--no-start");
    expect(await shell.json(0, "datasets", "download", id, "--out", "out")).toMatchObject({
      complete: true,
      state: "ready",
      videos: { downloaded: 0 },
    });
    t.worker.fate = "hang";
    await shell.json(0, "datasets", "resume", id);
    const early = await shell.run("datasets", "download", id, "--out", "out");
    expect(early.stdout).toMatch(/The dataset is running: run this again later/);
    t.worker.fate = "succeed";
    await t.worker.finishHanging();
    await shell.json(0, "datasets", "watch", id, "--no-contact-sheet");
    expect(await shell.json(0, "datasets", "download", id, "--out", "out")).toMatchObject({
      videos: { downloaded: 3 },
    });

    const other = await created("m.jsonl", "--no-start");
    const refused = await shell.run("datasets", "download", other, "--out", "out");
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/out holds another dataset/);
  });

  test("a video that is gone is told and ends with 3; the others come", async () => {
    await writeManifest("m.jsonl", 2);
    const id = await created("m.jsonl");
    await shell.json(0, "datasets", "watch", id, "--no-contact-sheet");
    await t.blobs.delete(blobKeys.datasetVideo(id, "ep-0001"));
    const { code, stderr, stdout } = await shell.run("datasets", "download", id, "--out", "out");
    expect(code).toBe(3);
    expect(stderr).toMatch(/^ep-0001: .+ \(404, req_/m);
    expect(stdout).toMatch(/1 videos downloaded .+1 could not be fetched/);
    expect(await videosIn("out")).toEqual(["ep-0002.mp4"]);
    // A record without its file would keep the folder from being loaded.
    const metadata = (await readFile(shell.path("out/metadata.parquet"))).toString("latin1");
    expect(metadata).toContain("videos/ep-0002.mp4");
    expect(metadata).not.toContain("videos/ep-0001.mp4");
    expect(await readFile(shell.path("out/results.jsonl"), "utf8")).toContain("videos/ep-0001.mp4");
  });

  test("Ctrl-C ends it with 130, and a server that goes away with 1; either way it can go on", async () => {
    t.worker.paddingBytes = 24 * 1024 * 1024;
    await writeManifest("m.jsonl", 6);
    const id = await created("m.jsonl");
    await shell.json(0, "datasets", "watch", id, "--no-contact-sheet");
    const first = shell.start("datasets", "download", id, "--out", "out", "--parallel", "1");
    await eventually(async () => (await videosIn("out")).length > 0, 60_000);
    expect(await interrupt(first, /^/)).toBe(130);
    expect(first.stderr()).toMatch(/the same command goes on where this one ended/);

    const other = await t.listen();
    const args = ["--out", "out", "--parallel", "1", "--url", other.url, "--give-up-after", "0"];
    await other.stop();
    const second = await shell.run("datasets", "download", id, ...args);
    expect(second).toMatchObject({ code: 1, stdout: "" });
    expect(second.stderr).toMatch(/No answer from/);
    expect(await shell.json(0, "datasets", "download", id, "--out", "out")).toMatchObject({ complete: true });
    expect(await videosIn("out")).toHaveLength(6);
  });
});

test("moved by npm, a command reads and writes where its user stands", async () => {
  await mkdir(shell.path("sub"));
  await writeManifest("m.jsonl", 1);
  const env = { ...shell.env, INIT_CWD: shell.path("sub"), npm_lifecycle_event: "dream-engine" };
  const npm = (...args: string[]) => run(["datasets", ...args, "--json"], env);
  const { code, stdout } = await npm("create", "../m.jsonl", "--watch");
  const { id = "" } = JSON.parse(stdout) as { id?: string };
  expect(code).toBe(0);
  expect(await npm("download", id)).toMatchObject({ code: 0 });
  expect((await readdir(shell.path("sub"))).toSorted()).toEqual([id, `${id}.png`]);
  expect(await videosIn(`sub/${id}`)).toEqual(["ep-0001.mp4"]);
});

test("list and show: for people and for programs", async () => {
  await writeManifest("m.jsonl", 1);
  const id = await created("m.jsonl", "--no-start", "--name", "one");
  expect((await shell.run("datasets", "list")).stdout).toMatch(
    new RegExp(`^DATASET .+NAME\\n${id} +\\d{4}-.+ready +1 +0 +\\$0\\.0000 +one\\n$`),
  );
  expect((await shell.run("datasets", "list", "--state", "completed", "--json")).stdout).toBe("");
  expect(await shell.json(0, "datasets", "show", id)).toMatchObject({ id, object: "dataset", name: "one" });
  expect((await shell.run("datasets", "show", id)).stdout).toMatch(/^Progress  0 of 1$/m);
  const stranger = await openShell(server.url, (await t.newKey()).api_key);
  expect(await stranger.run("datasets", "show", id)).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/dataset_not_found: .+ \(404, req_/),
  });
  await stranger.remove();
});
