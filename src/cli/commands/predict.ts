/**
 * `dream-engine predict`: one rollout through the HTTP API, as any customer would. It is submitted as an asynchronous one
 * and then waited for: a connection that breaks costs nothing, and there is progress to show.
 */
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";

import { type Command, Option } from "commander";

import { mils, usdText } from "#contract/mils.ts";
import { readConfig } from "#platform/config.ts";

import { createForm, uploadOf } from "../api/multipart.ts";
import { RolloutReply } from "../api/replies.ts";
import { wireJsonText } from "#contract/wire-json.ts";
import { type Bar, createBar } from "../bars.ts";
import { frameSheet } from "../contact-sheet.ts";
import {
  type Customer,
  type CustomerOptions,
  endsUsageErrors,
  openCustomer,
  parseNumber,
  parseSeed,
  withCustomer,
} from "../customer-options.ts";
import { interruptible } from "../interrupt.ts";
import { visible } from "../output.ts";
import { errorText, saveVideos } from "../rollouts/save.ts";
import { scoreText } from "../rollouts/score.ts";
import { exitCodeOf, stateText, untilDone } from "../rollouts/wait.ts";
import { cannotRead, userPath } from "../user-path.ts";

interface PredictOptions extends CustomerOptions {
  readonly frame: string;
  readonly actions: string;
  readonly out: string;
  readonly seed: bigint;
  readonly numSteps?: number;
  readonly guidance?: number;
  readonly prompt?: string;
  readonly model?: string;
  readonly score?: true;
  readonly idempotencyKey?: string;
  readonly webhookUrl?: string;
  readonly async?: true;
  readonly contactSheet?: string;
}

export function addPredict(program: Command): void {
  withCustomer(
    endsUsageErrors(program.command("predict"))
      .description("dream one rollout through the HTTP API and save the video")
      .requiredOption("--frame <file>", "start frame, PNG or JPEG")
      .requiredOption("--actions <file>", "actions, .npy of shape (T, action_dim)")
      .option("--out <file>", "where the video goes", "rollout.mp4")
      .addOption(new Option("--seed <number>", "seed").argParser(parseSeed).default(0n, "0"))
      .option("--num-steps <number>", "denoising steps", parseNumber)
      .option("--guidance <number>", "guidance scale", parseNumber)
      .option("--prompt <text>", "prompt")
      .option("--model <slug>", "model")
      .option("--score", "also compare the video with one of the base spec; costs the same, takes longer")
      .option("--async", "print the rollout's id and do not wait for it (rollouts wait|save)")
      .option("--webhook-url <url>", "is told when it has ended")
      .option(
        "--idempotency-key <key>",
        "the same key and inputs give the same rollout, charged once; default: a new one",
      )
      .option("--contact-sheet <png>", "also an image of frames of the video"),
    { waits: true },
  ).action(predict);
}

async function predict(options: PredictOptions): Promise<void> {
  const [frame, actions] = await Promise.all([read(userPath(options.frame)), read(userPath(options.actions))]);
  const out = userPath(options.out);
  const sheet = options.contactSheet === undefined ? null : userPath(options.contactSheet);
  const customer = await openCustomer(options);
  let rollout: RolloutReply | null = null;

  await interruptible(
    async (signal) => {
      const startedMs = performance.now();
      rollout = await submit(customer, options, { frame, actions }, signal);
      if (options.async) {
        customer.out.document(rollout);
        if (!customer.out.json) customer.out.say(rollout.id);
        return;
      }
      process.stderr.write(`submitted ${rollout.id}; Ctrl-C cancels it\n`);
      const done = await withBar(customer, rollout.id, signal);
      if (done.status !== "succeeded") {
        customer.out.document(done);
        process.exitCode = exitCodeOf([done]);
        const ended = `${done.id} is ${done.status}${errorText(done)}; it cost nothing (${done.request_id})`;
        process.stderr.write(`${visible(ended)}\n`);
        return;
      }
      const [video = out] = await saveVideos(customer, done, out, signal);
      const totalMs = performance.now() - startedMs;
      if (sheet !== null) await frameSheet(readConfig(process.env).FFMPEG_PATH, video, done.frames, sheet);
      customer.out.document({ ...done, file: video, contact_sheet: sheet });
      if (!customer.out.json) customer.out.say(summary(done, video, totalMs));
    },
    () => cancelled(customer, rollout),
  );
}

async function submit(
  { api }: Customer,
  options: PredictOptions,
  { frame, actions }: { frame: Buffer; actions: Buffer },
  signal: AbortSignal,
): Promise<RolloutReply> {
  const params = {
    mode: "async",
    seed: options.seed,
    num_steps: options.numSteps,
    guidance: options.guidance,
    prompt: options.prompt,
    model: options.model,
    score: options.score,
    webhook_url: options.webhookUrl,
  };
  const form = createForm([
    ["params", wireJsonText(params)],
    ["start_frame", uploadOf("start_frame.png", "image/png", frame)],
    ["actions", uploadOf("actions.npy", "application/octet-stream", actions)],
  ]);
  const idempotencyKey = options.idempotencyKey ?? `cli-${randomUUID()}`;
  return api.post("/v1/rollouts", RolloutReply, { form, idempotencyKey, signal });
}

async function withBar({ api }: Customer, id: string, signal: AbortSignal): Promise<RolloutReply> {
  let bar: Bar | undefined;
  try {
    return await untilDone(api, id, {
      signal,
      onLook(rollout) {
        bar ??= createBar("  dreaming {bar} {value}/{total} frames  {text}", rollout.frames_total);
        bar.update(rollout.frames_done ?? 0, stateText(rollout));
      },
    });
  } finally {
    bar?.stop();
  }
}

/** Whoever interrupts a call does not want its video; what was asked for with --async stays. */
async function cancelled({ api }: Customer, rollout: RolloutReply | null): Promise<string> {
  if (rollout === null) return "Interrupted before the server had answered; `rollouts list` tells whether it came in.";
  try {
    const { status } = await api.post(`/v1/rollouts/${rollout.id}/cancel`, RolloutReply);
    return `Interrupted; ${rollout.id} is ${status}.`;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return `Interrupted; ${rollout.id} could not be cancelled: ${reason}`;
  }
}

function summary(done: RolloutReply, file: string, totalMs: number): string {
  const cost = usdText(mils(done.cost_mils));
  const engine = done.engine_wall_ms === null ? "" : `engine ${done.engine_wall_ms.toFixed(0)} ms, `;
  const score = scoreText(done);
  const scored = score === null ? "" : `${score}, `;
  return `${file}: ${done.frames} frames, $${cost}, ${scored}${engine}total ${totalMs.toFixed(0)} ms (${done.id}, ${done.request_id})`;
}

async function read(file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (error) {
    throw cannotRead(file, error);
  }
}
