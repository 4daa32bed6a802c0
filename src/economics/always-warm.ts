/**
 * Whether a pool should keep a worker warm for good: what that costs, from how many frames on it pays, and the three
 * triggers that the pricing policy names. Pure; an operator flips the pool (`dream-engine pools always-warm`), nothing else does.
 */
const HOURS_PER_MONTH = 24 * 30;
const MILS_PER_USD = 10_000;
/** "One large customer commits to >2M frames/month and asks for warm-pool as part of the deal." */
const COMMITTED_FRAMES = 2_000_000;

export interface AlwaysWarm {
  /** Of one worker that never stops. */
  readonly rent_usd_per_month: number;
  /** To three digits, as the pricing policy says it: $2,840 at $3.95 an hour. */
  readonly quoted_rent_usd_per_month: number;
  /** Frames a month that come because of it (those of cold gaps), whose price is the quoted rent: 5.68 M. */
  readonly break_even_frames: number;
}

export function alwaysWarm(gpuUsdPerHour: number, priceMilsPerFrame: number): AlwaysWarm {
  if (!(gpuUsdPerHour >= 0) || !(priceMilsPerFrame > 0)) {
    throw new RangeError(`$${gpuUsdPerHour} an hour at ${priceMilsPerFrame} mils a frame; expected a rent and a price`);
  }
  const rent = gpuUsdPerHour * HOURS_PER_MONTH;
  const quoted = Number(rent.toPrecision(3));
  return {
    rent_usd_per_month: rent,
    quoted_rent_usd_per_month: quoted,
    break_even_frames: Math.ceil((quoted * MILS_PER_USD) / priceMilsPerFrame),
  };
}

/** A customer who wrote that cold starts hurt. */
export interface Complaint {
  readonly customer: string;
  /** Whether any frame of theirs was ever paid for. */
  readonly paying: boolean;
  /** Where it is written, or what it says. */
  readonly note: string;
  readonly at: Date;
}

/** What a customer promised, and for how long. */
export interface Commitment {
  readonly customer: string;
  readonly frames_per_month: number;
  /** Whether a warm pool is part of the deal. */
  readonly asks_warm: boolean;
  readonly until: Date;
}

export interface WarmFacts {
  /** Since the pool was last switched off: an operator who did that had heard of those before. */
  readonly complaints: readonly Complaint[];
  /** Frames of this month's requests that came while no worker was ready. */
  readonly gap_frames: number;
  readonly break_even_frames: number;
  /** One for each customer, the latest. */
  readonly commitments: readonly Commitment[];
}

export const WARM_TRIGGERS = ["complaint", "gap-frames", "commitment"] as const;

export interface WarmTrigger {
  readonly trigger: (typeof WARM_TRIGGERS)[number];
  readonly met: boolean;
  /** What decided it, in one sentence without its full stop. */
  readonly because: string;
}

export function warmTriggers(facts: WarmFacts, now: Date): WarmTrigger[] {
  const { complaints, gap_frames, break_even_frames, commitments } = facts;
  const paying = complaints.filter((complaint) => complaint.paying);
  const largest = commitments
    .filter(({ asks_warm, until }) => asks_warm && until > now)
    .reduce<Commitment | null>(
      (best, one) => (best && best.frames_per_month >= one.frames_per_month ? best : one),
      null,
    );
  const latest = paying.at(-1);
  return [
    {
      trigger: "complaint",
      met: latest !== undefined,
      because:
        latest === undefined
          ? "no paying customer's complaint about cold starts is recorded"
          : `${latest.customer} complained on ${latest.at.toISOString().slice(0, 10)}: ${latest.note}`,
    },
    {
      trigger: "gap-frames",
      met: gap_frames >= break_even_frames,
      because: `${counted(gap_frames)} frames of requests that came to a cold pool this month, of ${counted(break_even_frames)} whose price is the rent`,
    },
    {
      trigger: "commitment",
      met: largest !== null && largest.frames_per_month > COMMITTED_FRAMES,
      because:
        largest === null
          ? "nobody has committed to frames and asked for a warm pool"
          : `${largest.customer} committed to ${counted(largest.frames_per_month)} frames a month and asks for it; more than ${counted(COMMITTED_FRAMES)} are needed`,
    },
  ];
}

const counted = (frames: number): string => frames.toLocaleString("en-US");
