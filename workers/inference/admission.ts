/**
 * Which of the jobs that this process holds may run now. Two rules:
 *
 * - Together they have at most `samplesMax` samples; a rollout with more counts as `samplesMax` (the engine takes it in
 *   waves), so that it waits for an idle engine and not for ever.
 * - A job that runs alone is the only one its process holds, waiting ones and those on their way back into the queue
 *   included: if it ends the process, BullMQ counts a lost worker against every job that was active there, and the
 *   second time that fails them. So while an alone job is here the consumer takes none, whoever has not begun is put
 *   back, and it begins when everyone else is gone.
 */
interface Candidate {
  readonly samples: number;
  readonly alone: boolean;
}

/** `put_back`: not begun; release it unchanged. */
export type Verdict = "run" | "put_back";

export interface Admission {
  /** The process holds one job more, whether or not it will ever enter; `gone` has to follow. */
  came(): void;
  /** The queue has it back, or it is done. */
  gone(): void;
  /** After "run", `leave` has to follow. */
  enter(job: Candidate): Promise<Verdict>;
  leave(job: Candidate): void;
  /** From now on nothing begins: whoever waits, and whoever comes, is put back. */
  close(): void;
}

export interface AdmissionOptions {
  readonly samplesMax: number;
  /** Stop and go for the queue consumer; neither rejects. */
  readonly pause: () => Promise<void>;
  readonly resume: () => Promise<void>;
}

interface Waiting {
  readonly samples: number;
  readonly alone: boolean;
  readonly decide: (verdict: Verdict) => void;
}

export function createAdmission({ samplesMax, pause, resume }: AdmissionOptions): Admission {
  let held = 0;
  let samplesRunning = 0;
  let closed = false;
  /** The alone job that is here, waiting or running. */
  let aloneHere = false;
  let waiting: Waiting[] = [];

  const samplesOf = ({ samples }: Candidate): number => Math.min(samples, samplesMax);

  function putBackWaiting(): void {
    for (const { decide } of waiting) decide("put_back");
    waiting = [];
  }

  const fits = ({ samples, alone }: Waiting): boolean =>
    samplesRunning + samples <= samplesMax && (!alone || held <= 1);

  function admitWaiting(): void {
    for (let next = waiting[0]; next && fits(next); next = waiting[0]) {
      waiting.shift();
      samplesRunning += next.samples;
      next.decide("run");
    }
  }

  async function wait(samples: number, alone: boolean): Promise<Verdict> {
    const { promise, resolve } = Promise.withResolvers<Verdict>();
    waiting.push({ samples, alone, decide: resolve });
    admitWaiting();
    return promise;
  }

  return {
    came() {
      held += 1;
    },

    gone() {
      held -= 1;
      admitWaiting();
    },

    async enter(job) {
      if (closed || aloneHere) return "put_back";
      if (!job.alone) return wait(samplesOf(job), false);

      aloneHere = true;
      putBackWaiting();
      await pause();
      // All samples at once: it waits until everyone else has left.
      const verdict = closed ? "put_back" : await wait(samplesMax, true);
      if (verdict === "put_back") {
        aloneHere = false;
        if (!closed) await resume();
      }
      return verdict;
    },

    leave(job) {
      samplesRunning -= job.alone ? samplesMax : samplesOf(job);
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
