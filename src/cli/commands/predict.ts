/** `dream-engine predict`: one rollout through the HTTP API, as any customer would. */
import { readFile, writeFile } from "node:fs/promises";

import type { Command } from "commander";

import { readConfig } from "#platform/config.ts";

import { dream } from "../customer.ts";
import { findRunningServer } from "../running-server.ts";
import { UserError } from "../user-error.ts";

interface PredictOptions {
  readonly frame: string;
  readonly actions: string;
  readonly out: string;
  readonly url?: string;
  readonly key?: string;
  readonly seed: string;
  readonly numSteps?: string;
  readonly guidance?: string;
  readonly prompt?: string;
  readonly model?: string;
}

export function addPredict(program: Command): void {
  program
    .command("predict")
    .description("dream one rollout through the HTTP API and save the video")
    .requiredOption("--frame <file>", "start frame, PNG or JPEG")
    .requiredOption("--actions <file>", "actions, .npy of shape (T, action_dim)")
    .option("--out <file>", "where the video goes", "rollout.mp4")
    .option("--url <url>", "base URL; default: the server that runs on DATA_DIR, else PUBLIC_URL")
    .option("--key <key>", "API key (a process list shows it: DREAM_API_KEY in the environment is better)")
    .option("--seed <number>", "seed", "0")
    .option("--num-steps <number>", "denoising steps")
    .option("--guidance <number>", "guidance scale")
    .option("--prompt <text>", "prompt")
    .option("--model <slug>", "model")
    .action(predict);
}

async function predict(options: PredictOptions): Promise<void> {
  const url = options.url ?? (await defaultUrl());
  const [frame, actions] = await Promise.all([read(options.frame), read(options.actions)]);
  const optional = {
    num_steps: options.numSteps,
    guidance: options.guidance,
    prompt: options.prompt,
    model: options.model,
  };
  const fields: Record<string, string> = { seed: options.seed };
  for (const [name, value] of Object.entries(optional)) if (value !== undefined) fields[name] = value;

  const apiKey = options.key ?? process.env["DREAM_API_KEY"] ?? null;
  const reply = await dream({ url: url.replace(/\/+$/, ""), apiKey, frame, actions, fields });
  await writeFile(options.out, reply.video);
  console.log(
    `${options.out}: ${reply.frames} frames, $${reply.chargeUsd}, engine ${reply.engineWallMs.toFixed(0)} ms, ` +
      `total ${reply.totalMs.toFixed(0)} ms (${reply.requestId})`,
  );
}

async function defaultUrl(): Promise<string> {
  const config = readConfig(process.env);
  const server = await findRunningServer(config.DATA_DIR);
  return server?.url ?? config.PUBLIC_URL ?? `http://${config.HOST}:${config.PORT}`;
}

async function read(file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (error) {
    throw new UserError(`Cannot read ${file}.`, { cause: error });
  }
}
