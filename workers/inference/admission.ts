/**
 * Which of the jobs that this process holds may have the engine now. Three rules:
 *
 * - Each lane has at most `samplesMax` samples in the engine; a rollout with more counts as `samplesMax` (the engine takes
 *   it in waves), so that it waits for an idle lane and not for ever.
 * - Realtime jobs do not ask what bulk ones do: the engine has room for both lanes, and parks bulk samples between two
 *   steps while realtime ones need its forwards. Bulk jobs fill what is free, that is as long as both lanes together have at most
 *   `samplesMax` samples; but one of them may always be there, or under steady realtime work none would ever begin.
 * - A job that runs alone is the only one its process holds, waiting ones and those on their way back into a queue
 *   included: if it ends the process, BullMQ counts a lost worker against every job that was active there, and the
 *   second time that fails them. So while an alone job is here the consumers take none, whoever has not begun is put
 *   back, and it begins when everyone else is gone.
 */
import type { Lane } from "#contract/rollout.ts";

interface Candidate {
  readonly lane: Lane;
  readonly samples: number;
  readonly alone: boolean;
}

/** `put_back`: not begun; release it unchanged. `called_off`: its signal came before its turn. */
export type Verdict = "run" | "put_back" | "called_off";

export interface Admission {
  /** The process holds one job more, whether or not it will ever enter; `gone` has to follow. */
  came(): void;
  /** The queue has it back, or it is done. */
  gone(): void;
  /** After "run", `leave` has to follow. Whoever is called off while it waits waits no longer. */
  enter(job: Candidate, signal?: AbortSignal): Promise<Verdict>;
  leave(job: Candidate): void;
  /** From now on nothing begins: whoever waits, and whoever comes, is put back. */
  close(): void;
}

export interface AdmissionOptions {
  readonly samplesMax: number;
  /** Stop and go for the consumers of both queues; neither rejects. */
  readonly pause: () => Promise<void>;
  readonly resume: () => Promise<void>;
}

interface Waiting {
  readonly lane: Lane;
  readonly samples: number;
  readonly alone: boolean;
  readonly decide: (verdict: Verdict) => void;
}

export function createAdmission({ samplesMax, pause, resume }: AdmissionOptions): Admission {
  let held = 0;
  const running: Record<Lane, number> = { realtime: 0, bulk: 0 };
  let closed = false;
  /** The alone job that is here, waiting or running. */
  let aloneHere = false;
  /** In order of arrival. */
  let waiting: Waiting[] = [];

  const samplesOf = ({ samples }: Candidate): number => Math.min(samples, samplesMax);

  function putBackWaiting(): void {
    for (const { decide } of waiting) decide("put_back");
    waiting = [];
  }

  function fits({ lane, samples, alone }: Waiting): boolean {
    if (alone) return held <= 1 && running.realtime + running.bulk === 0;
    if (lane === "realtime") return running.realtime + samples <= samplesMax;
    return running.bulk === 0 || running.realtime + running.bulk + samples <= samplesMax;
  }

  /** The first of each lane, as long as it fits: within a lane nobody overtakes. */
  function admitWaiting(): void {
    for (const lane of ["realtime", "bulk"] as const) {
      const firstOfLane = () => waiting.find((job) => job.lane === lane);
      for (let next = firstOfLane(); next && fits(next); next = firstOfLane()) {
        remove(next);
        running[lane] += next.samples;
        next.decide("run");
      }
    }
  }

  function remove(job: Waiting): void {
    waiting = waiting.filter((other) => other !== job);
  }

  async function wait(job: Omit<Waiting, "decide">, signal: AbortSignal | undefined): Promise<Verdict> {
    const { promise, resolve: decide } = Promise.withResolvers<Verdict>();
    const place = { ...job, decide };
    const callOff = () => {
      remove(place);
      decide("called_off"); // of somebody who was admitted already, this changes nothing
      admitWaiting(); // whom it kept waiting
    };
    waiting.push(place);
    signal?.addEventListener("abort", callOff);
    admitWaiting();
    try {
      return await promise;
    } finally {
      signal?.removeEventListener("abort", callOff);
    }
  }

  async function waitAlone(lane: Lane, signal: AbortSignal | undefined): Promise<Verdict> {
    if (closed) return "put_back";
    if (signal?.aborted) return "called_off";
    return wait({ lane, samples: samplesMax, alone: true }, signal);
  }

  return {
    came() {
      held += 1;
    },

    gone() {
      held -= 1;
      admitWaiting();
    },

    async enter(job, signal) {
      if (closed || aloneHere) return "put_back";
      if (signal?.aborted) return "called_off";
      if (!job.alone) return wait({ lane: job.lane, samples: samplesOf(job), alone: false }, signal);

      aloneHere = true;
      putBackWaiting();
      await pause();
      const verdict = await waitAlone(job.lane, signal);
      if (verdict !== "run") {
        aloneHere = false;
        if (!closed) await resume();
      }
      return verdict;
    },

    leave(job) {
      running[job.lane] -= job.alone ? samplesMax : samplesOf(job);
      if (job.alone) {
        aloneHere = false;
        if (!closed) void resume();
      }
      admitWaiting();
    },

    close() {
      closed = true;
      putBackWaiting();
    },
  };
}
