/** `dream-engine rollouts list|get|wait|cancel|save`: a customer's rollouts through the HTTP API. */
import type { Command } from "commander";

import { mils, usdText } from "#contract/mils.ts";

import { type Page, RolloutPage, RolloutReply } from "../api/replies.ts";
import { type Bar, createBars } from "../bars.ts";
import { type CustomerOptions, endsUsageErrors, openCustomer, withCustomer } from "../customer-options.ts";
import { eachId } from "../each-id.ts";
import { inParallel } from "../in-parallel.ts";
import { interruptible } from "../interrupt.ts";
import { timeText } from "../output.ts";
import { listAll, type PagingOptions, parseTime, withPaging } from "../paging.ts";
import { errorText, saveVideos } from "../rollouts/save.ts";
import { scoreText } from "../rollouts/score.ts";
import { exitCodeOf, isDone, stateText, untilDone } from "../rollouts/wait.ts";
import { userPath } from "../user-path.ts";

interface ListOptions extends CustomerOptions, PagingOptions {
  readonly status?: string;
  readonly model?: string;
  readonly dataset?: string;
  readonly createdAfter?: number;
  readonly createdBefore?: number;
}

/** Long polls at once; further ids wait for a place. */
const WAITED_AT_ONCE = 32;

export function addRollouts(program: Command): void {
  const rollouts = endsUsageErrors(program.command("rollouts")).description("your rollouts, through the HTTP API");
  withCustomer(
    withPaging(
      rollouts
        .command("list")
        .description("newest first; rows of a dataset with --dataset only")
        .option("--status <status>", "queued, running, succeeded, failed, cancelled or expired")
        .option("--model <slug>")
        .option("--dataset <id>", "the rollouts of its rows")
        .option("--created-after <time>", "2026-11-22 or 2026-11-22T18:00Z", parseTime)
        .option("--created-before <time>", "the same", parseTime),
    ),
  ).action(list);
  withCustomer(rollouts.command("get <id>").description("one rollout")).action(get);
  withCustomer(
    rollouts
      .command("wait <id...>")
      .description(
        "until all have ended; Ctrl-C stops the waiting, not the rollouts; exit code 3 when one did not succeed",
      ),
    { waits: true },
  ).action(wait);
  withCustomer(rollouts.command("cancel <id...>").description("stop and refund; a finished one says so")).action(
    cancel,
  );
  withCustomer(
    rollouts
      .command("save <id>")
      .description("the video of a finished rollout")
      .option("--out <file>", "default <id>.mp4"),
  ).action(save);
}

async function list(options: ListOptions): Promise<void> {
  const { api, out } = await openCustomer(options);
  const query = {
    status: options.status,
    model: options.model,
    dataset: options.dataset,
    created_after: options.createdAfter,
    created_before: options.createdBefore,
  };
  const page = (after: string | number | undefined, limit: number): Promise<Page<RolloutReply>> =>
    api.get("/v1/rollouts", RolloutPage, { query: { ...query, after, limit } });
  const heading = ["ROLLOUT", "CREATED (UTC)", "MODEL", "STATUS", "FRAMES", "COST"];
  await listAll(out, { page, wanted: options, heading, cells });
}

const cells = (rollout: RolloutReply): string[] => [
  rollout.id,
  timeText(rollout.created),
  rollout.model,
  rollout.status,
  String(rollout.frames * rollout.batch_size),
  `$${usdText(mils(rollout.cost_mils))}`,
];

async function get(id: string, options: CustomerOptions): Promise<void> {
  const { api, out } = await openCustomer(options);
  const rollout = await api.get(pathOf(id), RolloutReply);
  out.document(rollout);
  if (out.json) return;
  const progress = isDone(rollout) ? "" : ` · ${rollout.frames_done ?? 0} of ${rollout.frames_total} frames`;
  const score = scoreText(rollout);
  const lines = [
    `Rollout  ${rollout.id} (${rollout.request_id})`,
    `Model    ${rollout.model}`,
    `Created  ${timeText(rollout.created)} UTC`,
    `State    ${stateText(rollout)}${progress}${errorText(rollout)}`,
    `Frames   ${rollout.frames}${rollout.batch_size === 1 ? "" : ` × ${rollout.batch_size} candidates`}`,
    `Cost     $${usdText(mils(rollout.cost_mils))}`,
    ...(score === null ? [] : [`Score    ${score}`]),
    ...rollout.video_urls.map((url) => `Video    ${url}`),
  ];
  out.say(lines.join("\n"));
}

async function wait(ids: string[], options: CustomerOptions): Promise<void> {
  const { api, out } = await openCustomer(options);
  const done = new Map<string, RolloutReply>();
  const bars = createBars("  {name} {bar} {value}/{total} frames  {text}");
  await interruptible(
    async (signal) => {
      process.stderr.write(
        `waiting for ${ids.length === 1 ? ids[0] : `${ids.length} rollouts`}; Ctrl-C leaves what has not ended running\n`,
      );
      await inParallel(WAITED_AT_ONCE, [...new Set(ids)], async (id) => {
        let bar: Bar | undefined;
        const rollout = await untilDone(api, id, {
          signal,
          onLook(now) {
            bar ??= bars.of(id, now.frames_total);
            bar.update(now.status === "succeeded" ? now.frames_total : (now.frames_done ?? 0), stateText(now));
          },
        });
        done.set(id, rollout);
        // In the order in which they end: whoever reads along learns at once.
        out.line(rollout);
        if (!process.stderr.isTTY) tell(rollout);
      });
    },
    () => {
      bars.stop();
      const left = ids.filter((id) => !done.has(id));
      return `Stopped waiting; ${left.length === 1 ? `${left[0]} goes` : `${left.length} rollouts go`} on: rollouts wait ${left.join(" ")}`;
    },
  ).finally(() => bars.stop());
  if (process.stderr.isTTY) for (const rollout of done.values()) tell(rollout);
  process.exitCode = exitCodeOf([...done.values()]);

  function tell(rollout: RolloutReply): void {
    const cost = rollout.status === "succeeded" ? `, $${usdText(mils(rollout.cost_mils))}` : "";
    const score = scoreText(rollout);
    out.say(`${rollout.id} ${rollout.status}${errorText(rollout)}${cost}${score === null ? "" : `, ${score}`}`);
  }
}

async function cancel(ids: string[], options: CustomerOptions): Promise<void> {
  const { api, out } = await openCustomer(options);
  await eachId(ids, async (id) => {
    // A second cancellation is answered as the first was, so the call can be repeated.
    const rollout = await api.post(`${pathOf(id)}/cancel`, RolloutReply, { repeatable: true });
    out.line(rollout);
    if (!out.json) out.say(`${id} ${rollout.status}`);
  });
}

async function save(id: string, options: CustomerOptions & { out?: string }): Promise<void> {
  const customer = await openCustomer(options);
  const { api, out } = customer;
  await interruptible(
    async (signal) => {
      const rollout = await api.get(pathOf(id), RolloutReply, { signal });
      const files = await saveVideos(customer, rollout, userPath(options.out ?? `${rollout.id}.mp4`), signal);
      out.document({ ...rollout, files });
      if (!out.json) out.say(files.join("\n"));
    },
    () => "Interrupted; the same command goes on where this one ended.",
  );
}

const pathOf = (id: string): string => `/v1/rollouts/${encodeURIComponent(id)}`;
