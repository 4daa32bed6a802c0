/** The operator's page, and what it reads: `GET /dashboard`, `GET /v1/admin/overview`, `GET /v1/admin/rollouts/{id}`. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance, FastifyReply } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { parseRolloutId } from "#contract/ids.ts";
import { usdText } from "#contract/mils.ts";
import { addressOf } from "#keys/customers.ts";
import { findForOperator, type OperatorRollout } from "#rollouts/operator-view.ts";

import { type Page, readDashboardPage, readLoginPage } from "../dashboard/page.ts";
import { createOverview } from "../overview/overview.ts";
import { createDashboardCheck, createDashboardSessions, problemOf } from "../plugins/dashboard-session.ts";
import type { RouteParts } from "../route-parts.ts";

/** A form with one field. */
const FORM_BYTES_MAX = 2_048;

export async function addDashboardRoutes(
  bare: FastifyInstance,
  parts: RouteParts & { readonly dashboardSecret: Buffer },
): Promise<void> {
  const { db, config, clock, dashboardSecret } = parts;
  const sessions = createDashboardSessions({ config, secret: dashboardSecret, clock });
  const checkSessionOrOperator = createDashboardCheck(parts, sessions);
  const overview = createOverview(parts);
  const page = readDashboardPage();
  const loginPage = readLoginPage();

  // A plugin of its own, so that its form is read here and nowhere else.
  await bare.register(async (scoped) => {
    const app = scoped.withTypeProvider<TypeBoxTypeProvider>();
    app.addContentTypeParser(
      "application/x-www-form-urlencoded",
      { parseAs: "string", bodyLimit: FORM_BYTES_MAX },
      async (_request: unknown, body: string | Buffer) => Object.fromEntries(new URLSearchParams(String(body))),
    );

    app.get("/dashboard", { schema: { hide: true } }, async function showPage(request, reply) {
      // Whoever opens the page for the first time has tried no token.
      if (
        config.OPERATOR_TOKEN !== undefined &&
        request.headers.authorization === undefined &&
        !sessions.holds(request)
      ) {
        return send(reply.code(401), loginPage(null));
      }
      await checkSessionOrOperator.call(this, request, reply);
      return send(reply, page);
    });

    app.post("/dashboard/session", { schema: { hide: true } }, async (request, reply) => {
      const problem = await problemOf(tokenOf(request.body), request, parts);
      if (problem !== null) {
        return send(reply.code(problem.status).headers(problem.headers), loginPage(problem.message));
      }
      return reply.header("Set-Cookie", sessions.begin(request)).redirect("/dashboard", 303);
    });

    app.post("/dashboard/session/end", { schema: { hide: true } }, async (_request, reply) =>
      reply.header("Set-Cookie", sessions.end()).redirect("/dashboard", 303),
    );

    app.get(
      "/v1/admin/overview",
      { onRequest: checkSessionOrOperator, schema: { hide: true } },
      async () => await overview(),
    );

    app.get(
      "/v1/admin/rollouts/:rollout_id",
      {
        onRequest: checkSessionOrOperator,
        schema: { hide: true, params: Type.Object({ rollout_id: Type.String() }) },
      },
      async ({ params }) => {
        const id = parseRolloutId(params.rollout_id);
        const found = id === null ? null : await findForOperator(db, id);
        if (found === null) throw new ApiError("rollout_not_found", `there is no rollout ${params.rollout_id}`);
        return operatorView(found);
      },
    );
  });
}

function send(reply: FastifyReply, { html, policy }: Page): FastifyReply {
  return reply.type("text/html; charset=utf-8").header("Content-Security-Policy", policy).send(html);
}

const tokenOf = (body: unknown): string =>
  typeof body === "object" && body !== null && "token" in body && typeof body.token === "string" ? body.token : "";

/** All but its inputs' hash, its keys' ids and its files' names. */
function operatorView({ rollout, email, signup_email, entries }: OperatorRollout) {
  const { id, customer_id, request_id, model, lane, route, status, attempt, k, params } = rollout;
  return {
    rollout_id: id,
    customer_id,
    address: addressOf({ email, signup_email }),
    request_id,
    model,
    lane,
    route,
    status,
    attempt,
    k,
    actions_per_candidate: rollout.actions_per_candidate,
    params,
    scored: rollout.scored,
    dataset_id: rollout.dataset_id,
    dataset_row: rollout.dataset_row,
    error_code: rollout.error_code,
    error_message: rollout.error_message,
    frames: rollout.frames,
    frames_delivered: rollout.frames_delivered,
    price_mils_per_frame: rollout.price_mils_per_frame,
    charge_usd: usdText(rollout.charge_mils),
    refunded_usd: usdText(rollout.refunded_mils),
    created_at: rollout.created_at,
    dispatched_at: rollout.dispatched_at,
    finished_at: rollout.finished_at,
    deadline_at: rollout.deadline_at,
    timings: rollout.result?.timings ?? null,
    entries: entries.map(({ kind, amount_mils, balance_after_mils, at }) => ({
      kind,
      usd: usdText(amount_mils),
      balance_after_usd: usdText(balance_after_mils),
      at,
    })),
  };
}
