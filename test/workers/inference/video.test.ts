/** What ffmpeg makes of raw frames, and what becomes of an encoding when ffmpeg does not play along. */
import { execFile } from "node:child_process";
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { getPriority, tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { afterAll, beforeAll, expect, test } from "vitest";

import { createSlots } from "#platform/slots.ts";
import { silentLog } from "#test/support/postgres.ts";
import { startEncoding, VideoError, type VideoOptions } from "#workers/inference/video/encode.ts";
import { type Encoder, startEncoder } from "#workers/inference/video/encoder.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

import { eventually } from "./support/eventually.ts";

const run = promisify(execFile);
const [WIDTH, HEIGHT, FPS, FRAMES] = [32, 16, 10, 25];
const FRAME_BYTES = WIDTH * HEIGHT * 3;

let dir: string;
let ffmpegPath: string;
let encoder: Encoder;
const encoders: Encoder[] = [];
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "dream-engine-test-video-"));
  ffmpegPath = await findFfmpeg(undefined);
  encoder = encoderWith(ffmpegPath);
});
afterAll(async () => {
  await Promise.all(encoders.map((one) => one.stop()));
  await rm(dir, { recursive: true, force: true });
});

function encoderWith(path: string): Encoder {
  const started = startEncoder({ ffmpegPath: path, log: silentLog });
  encoders.push(started);
  return started;
}

/** Grey frames, each brighter than the one before. */
const frame = (index: number): Uint8Array => new Uint8Array(FRAME_BYTES).fill(20 + index * 8);

const optionsFor = (name: string, changes: Partial<VideoOptions> = {}): VideoOptions => ({
  encoder,
  file: join(dir, `${name}.mp4`),
  width: WIDTH,
  height: HEIGHT,
  fps: FPS,
  frames: FRAMES,
  slots: createSlots(1),
  ...changes,
});

/** A script that stands where ffmpeg should be; it answers what fluent-ffmpeg asks first, then does as told. */
async function impostor(name: string, body: string): Promise<string> {
  const path = join(dir, name);
  const answers = `case "$*" in *-encoders|*-formats) exec ${ffmpegPath} "$@";; esac`;
  await writeFile(path, `#!/bin/sh\n${answers}\n${body}\n`);
  await chmod(path, 0o755);
  return path;
}

async function decode(file: string): Promise<Buffer> {
  const options = { encoding: "buffer", maxBuffer: 2 ** 26 } as const;
  const { stdout } = await run(ffmpegPath, ["-i", file, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"], options);
  return stdout;
}

test("one that nobody waits for lets others have the processor first", async () => {
  const told = join(dir, "niceness");
  const path = await impostor("nice-ffmpeg", `nice >> ${told}\nexec ${ffmpegPath} "$@"`);
  const nice = encoderWith(path);
  for (const yields of [true, false]) {
    const video = startEncoding(optionsFor(`yields-${yields}`, { encoder: nice, yields }));
    for (let i = 0; i < FRAMES; i++) void video.write(frame(i));
    await video.finish();
  }
  const own = getPriority();
  const expected = [Math.min(19, own + 10), own];
  expect((await readFile(told, "utf8")).trim().split("\n").map(Number)).toEqual(expected);
});

test("makes H.264 in yuv420p at the model's fps with exactly the frames given, in order", async () => {
  const video = startEncoding(optionsFor("good"));
  void video.write(frame(0));
  for (let i = 1; i < FRAMES; i += 3) void video.write(Buffer.concat([frame(i), frame(i + 1), frame(i + 2)]));
  await video.finish();

  const file = join(dir, "good.mp4");
  const { stderr } = await run(ffmpegPath, ["-i", file, "-f", "null", "-"]);
  expect(stderr).toMatch(/Video: h264 .*yuv420p.*32x16.* 10 fps/);
  const pixels = await decode(file);
  expect(pixels.length).toBe(FRAMES * FRAME_BYTES);
  for (let i = 0; i < FRAMES; i++) {
    const [first = Number.NaN] = pixels.subarray(i * FRAME_BYTES);
    expect(Math.abs(first - (20 + i * 8))).toBeLessThanOrEqual(4);
  }
});

test("puts the index before the data, so that a player starts before it has everything", async () => {
  expect(boxesOf(await readFile(join(dir, "good.mp4")))).toEqual(["ftyp", "moov", "free", "mdat"]);
});

/** Names of the top-level boxes of an MP4 file. */
function boxesOf(file: Buffer): string[] {
  const names: string[] = [];
  for (let at = 0; at < file.length; at += file.readUInt32BE(at)) names.push(file.toString("latin1", at + 4, at + 8));
  return names;
}

test("refuses to call a video complete that lacks a frame", async () => {
  const video = startEncoding(optionsFor("short"));
  for (let i = 0; i < FRAMES - 1; i++) void video.write(frame(i));
  await expect(video.finish()).rejects.toThrow(`the video has ${FRAMES - 1} frames, expected ${FRAMES}`);
});

test("tells a writer when ffmpeg has its frames, and does not keep it waiting once ffmpeg has ended", async () => {
  const slots = createSlots(1);
  const giveBack = await slots.take();
  const frames = 200;
  const video = startEncoding(optionsFor("paced", { slots, frames }));
  let taken = 0;
  for (let i = 0; i < frames; i++) void video.write(frame(0)).then(() => (taken += 1));
  await new Promise((resolve) => setImmediate(resolve));
  expect(taken).toBeLessThan(frames); // no process yet, and a pipe holds little
  giveBack();
  await video.finish();
  expect(taken).toBe(frames);

  const broken = startEncoding(optionsFor("not paced", { encoder: encoderWith("/bin/false") }));
  await Promise.all(Array.from({ length: FRAMES }, (_, i) => broken.write(frame(i))));
});

test("takes no more frames than the video has", () => {
  const video = startEncoding(optionsFor("long", { frames: 1 }));
  void video.write(frame(0));
  expect(() => video.write(frame(1))).toThrow("more frames than the video has");
  return video.abort();
});

test.each([
  ["is killed", "kill -9 $$"],
  ["fails", "echo no space left >&2; exit 1"],
  ["may not write", `ulimit -f 0; exec "$FFMPEG" "$@"`],
])("fails at once and clearly when ffmpeg %s", async (name, body) => {
  const path = await impostor(`ffmpeg ${name}`, body.replace("$FFMPEG", ffmpegPath));
  const video = startEncoding(optionsFor(`victim ${name}`, { encoder: encoderWith(path) }));
  for (let i = 0; i < FRAMES; i++) void video.write(frame(i));
  await expect(video.finish()).rejects.toThrow(VideoError);
  expect((await video.failed).message).toBe("ffmpeg could not encode the video");
});

test("ffmpeg is the child of a small process that knows no secrets; when that dies, the next video has another", async () => {
  const told = join(dir, "who");
  const path = await impostor(
    "ffmpeg-that-tells",
    `echo $PPID >> ${told}\nenv >> ${told}.env\nexec ${ffmpegPath} "$@"`,
  );
  process.env["SECRET_OF_THE_WORKER"] = "s3cret";
  const own = encoderWith(path);
  const { pid = 0 } = own;
  const video = startEncoding(optionsFor("orphaned", { encoder: own }));
  void video.write(frame(0));
  await eventually(async () => (await readFile(told, "utf8").catch(() => "")).includes("\n"));
  expect(Number(await readFile(told, "utf8"))).toBe(pid);
  expect(await readFile(`${told}.env`, "utf8")).not.toContain("s3cret");
  delete process.env["SECRET_OF_THE_WORKER"];

  process.kill(pid, "SIGKILL");
  expect((await video.failed).cause).toMatchObject({ message: "the encoder process ended (signal SIGKILL)" });
  await expect(video.finish()).rejects.toThrow(VideoError);
  const next = startEncoding(optionsFor("adopted", { encoder: own }));
  for (let i = 0; i < FRAMES; i++) void next.write(frame(i));
  await next.finish();
  expect(own.pid).not.toBe(pid);
  await own.stop();
  const late = startEncoding(optionsFor("late", { encoder: own }));
  expect((await late.failed).cause).toMatchObject({ message: "the encoder was stopped" });
});

test("fails when ffmpeg has gone missing", async () => {
  const video = startEncoding(optionsFor("missing", { encoder: encoderWith(join(dir, "nowhere")) }));
  expect((await video.failed).cause).toMatchObject({ code: "ENOENT" });
  await expect(video.finish()).rejects.toThrow(VideoError);
});

test("an aborted encoding leaves no process behind", async () => {
  const pidFile = join(dir, "pid");
  const path = await impostor("endless", `echo $$ > ${pidFile}; exec sleep 60`);
  const video = startEncoding(optionsFor("aborted", { encoder: encoderWith(path) }));
  void video.write(frame(0));
  const pid = await eventually(async () => Number(await readFile(pidFile, "utf8").catch(() => "")));
  expect(process.kill(pid, 0)).toBe(true);
  await video.abort();
  expect(() => process.kill(pid, 0)).toThrow("ESRCH");
  await expect(video.finish()).rejects.toThrow(VideoError);
});

test("ffmpeg ends with the last frame and gives its slot back, before anybody asks for the file", async () => {
  const slots = createSlots(1);
  const first = startEncoding(optionsFor("early", { slots }));
  for (let i = 0; i < FRAMES; i++) void first.write(frame(i));
  (await slots.take())();
  await first.finish();
  expect((await decode(join(dir, "early.mp4"))).length).toBe(FRAMES * FRAME_BYTES);
});

test("no more processes run than there are slots; the others keep their frames until it is their turn", async () => {
  const slots = createSlots(1);
  const videos = ["one", "two", "three"].map((name) => startEncoding(optionsFor(name, { slots })));
  for (const video of videos) for (let i = 0; i < FRAMES; i++) void video.write(frame(i));
  await Promise.all(videos.map((video) => video.finish()));
  expect((await decode(join(dir, "three.mp4"))).length).toBe(FRAMES * FRAME_BYTES);
});

test("finding ffmpeg names the path that cannot be used", async () => {
  await expect(findFfmpeg(join(dir, "nowhere"))).rejects.toThrow(/ffmpeg at .*nowhere \(FFMPEG_PATH\) cannot be used/);
  await expect(findFfmpeg("/bin/true")).rejects.toMatchObject({ cause: { message: "it has no libx264 encoder" } });
});
