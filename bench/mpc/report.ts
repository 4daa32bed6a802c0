/** A planner's eight candidates, asked for in four ways, as tables. */
import type { EngineWork } from "../bundle-engine.ts";
import { median } from "../machine.ts";

/** Candidates of a planner. */
export const K = 8;
/** In the order of the table. */
export const WAYS = ["8 in one request", "8 requests at once", "8 requests in a row", "1 request"] as const;
export type WayName = (typeof WAYS)[number];

export interface Turn {
  readonly way: WayName;
  readonly wall_ms: number;
  /** Null where the engine is in another process. */
  readonly work: EngineWork | null;
}

export interface Planned {
  readonly model: string;
  readonly where: string;
  readonly actions: number;
  readonly num_steps: number;
  readonly guidance: number;
  /** Each way once a round. */
  readonly rounds: readonly (readonly Turn[])[];
}

export interface Row {
  readonly way: WayName;
  readonly wall_ms: number;
  readonly frames_per_s: number;
  /** The way's frames a second divided by the other's, medians of the rounds' own. */
  readonly beside_in_a_row: number;
  readonly beside_one: number;
  readonly work: EngineWork | null;
}

export function rowsOf({ rounds, actions }: Pick<Planned, "rounds" | "actions">): Row[] {
  const framesOf = (way: WayName): number => (way === "1 request" ? 1 : K) * actions;
  return WAYS.map((way): Row => {
    const turns = rounds.map((round) => turnOf(round, way));
    const wall_ms = median(turns.map((turn) => turn.wall_ms));
    const beside = (other: WayName): number =>
      median(
        rounds.map((round, i) => {
          const wallMs = turns[i]?.wall_ms ?? Number.NaN;
          return (framesOf(way) * turnOf(round, other).wall_ms) / (framesOf(other) * wallMs);
        }),
      );
    return {
      way,
      wall_ms,
      frames_per_s: (1000 * framesOf(way)) / wall_ms,
      beside_in_a_row: beside("8 requests in a row"),
      beside_one: beside("1 request"),
      work: turns[0]?.work ?? null,
    };
  });
}

export function linesOf(planned: Planned): string[] {
  const rows = rowsOf(planned);
  const { model, where, actions, num_steps, guidance } = planned;
  const heads = ["wall", "frames/s", "frames/s ÷ in a row", "frames/s ÷ K = 1"];
  const counted = rows.some(({ work }) => work !== null);
  if (counted) heads.push("frames encoded", "prompts looked up", "forwards of the body", "rows in them");
  return [
    `## ${model}, ${where}`,
    "",
    `Candidates of ${actions} frames, ${num_steps} steps, ${guidance === 0 ? "no guidance" : `guidance ${guidance}`}.`,
    "",
    `| | ${heads.join(" | ")} |`,
    `|---|${heads.map(() => "---|").join("")}`,
    ...rows.map(({ way, wall_ms, frames_per_s, beside_in_a_row, beside_one, work }) => {
      const cells = [
        `${wall_ms.toFixed(0)} ms`,
        frames_per_s.toFixed(1),
        beside_in_a_row.toFixed(2),
        beside_one.toFixed(2),
      ];
      if (work) cells.push(...[work.frames_encoded, work.text_lookups, work.bodies, work.body_rows].map(String));
      return `| ${way} | ${cells.join(" | ")} |`;
    }),
    "",
  ];
}

function turnOf(round: readonly Turn[], way: WayName): Turn {
  const turn = round.find((one) => one.way === way);
  if (!turn) throw new Error(`a round without ${way}`);
  return turn;
}
