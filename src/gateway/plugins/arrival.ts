/**
 * How long the body of a request may take to arrive. Node knows one time for all requests of a server, and that has to be
 * the longest; here each route gets its own. Usual bodies have to be in within 90 s. Those of datasets may take an hour,
 * for as long as bytes keep coming: a caller is waited for, but a moment without bytes uses up what it has left of 30 s, and
 * only a steady stream fills that up again. While we are the slow ones, nothing is used up.
 */
import type { Socket } from "node:net";

import type { FastifyInstance, FastifyRequest } from "fastify";

declare module "fastify" {
  interface FastifyContextConfig {
    /** Its body may take as long as it keeps coming. */
    arrivesSteadily?: boolean;
  }
}

export interface ArrivalBounds {
  /** A usual body; 32 MB arrive on 3 Mbit/s. */
  readonly bodyMs: number;
  /** A body that keeps coming; 4 GB arrive on 10 Mbit/s. */
  readonly steadyBodyMs: number;
  /** What a steady one may be waited for altogether, beyond what its bytes account for. */
  readonly patienceMs: number;
  /** Slower is not steady; a tenth of the slowest lines people work on. */
  readonly bytesPerSMin: number;
  /** How often it is looked at. */
  readonly lookEveryMs: number;
}

export const ARRIVAL_BOUNDS: ArrivalBounds = {
  bodyMs: 90_000,
  steadyBodyMs: 3_600_000,
  patienceMs: 30_000,
  bytesPerSMin: 8 * 1024,
  lookEveryMs: 5_000,
};

/** Before the hooks that may refuse a request: the body of a refused one arrives all the same. */
export function addArrivalBounds(app: FastifyInstance, bounds: ArrivalBounds): void {
  app.addHook("onRequest", async (request) => {
    if (!hasBody(request)) return;
    const watch = request.routeOptions.config.arrivesSteadily === true ? watchSteady : watchUsual;
    const { raw } = request;
    const { socket } = raw;
    const stop = watch(request, bounds, () => {
      stop();
      cutOff(app, socket);
    });
    raw.once("end", stop);
    // Also where its end is never read.
    raw.once("close", stop);
    socket.once("close", stop);
    raw.once("end", () => socket.off("close", stop));
  });
}

const hasBody = ({ headers }: FastifyRequest): boolean =>
  headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0;

type Watch = (request: FastifyRequest, bounds: ArrivalBounds, late: () => void) => () => void;

const watchUsual: Watch = ({ raw }, { bodyMs }, late) => {
  const timer = setTimeout(() => {
    if (!raw.complete) late();
  }, bodyMs);
  return () => clearTimeout(timer);
};

const watchSteady: Watch = ({ raw }, { steadyBodyMs, patienceMs, bytesPerSMin, lookEveryMs }, late) => {
  const startedMs = performance.now();
  let patience = patienceMs;
  let lookedMs = startedMs;
  let seen = raw.socket.bytesRead;
  const timer = setInterval(() => {
    const nowMs = performance.now();
    const { bytesRead } = raw.socket;
    const weAreSlow = raw.isPaused() || raw.readableLength > 0;
    const earnedMs = ((bytesRead - seen) / bytesPerSMin) * 1000;
    patience = Math.min(patienceMs, patience + earnedMs - (weAreSlow ? 0 : nowMs - lookedMs));
    lookedMs = nowMs;
    seen = bytesRead;
    if (raw.complete) clearInterval(timer);
    else if (patience < 0 || nowMs - startedMs > steadyBodyMs) late();
  }, lookEveryMs);
  return () => clearInterval(timer);
};

/** The caller gets that long to read why. */
const LAST_WORDS_MS = 2_000;

/** As Node itself does with a request that is late: our answer to it is plugins/errors.ts'. */
function cutOff(app: FastifyInstance, socket: Socket): void {
  if (socket.destroyed) return;
  const error = Object.assign(new Error("the request did not arrive in time"), { code: "ERR_HTTP_REQUEST_TIMEOUT" });
  app.server.emit("clientError", error, socket);
  const timer = setTimeout(() => socket.destroy(), LAST_WORDS_MS);
  socket.once("close", () => clearTimeout(timer));
}
