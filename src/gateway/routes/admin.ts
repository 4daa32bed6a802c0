/** What the operator alone may read, under one check (plugins/operator.ts); below the bare base URL only. */
import type { FastifyInstance } from "fastify";

import { createOperatorCheck } from "../plugins/operator.ts";
import type { RouteParts } from "../route-parts.ts";
import { addEconomicsRoute } from "./economics.ts";

/** A plugin of its own, so that its hook is in front of these routes and of no other. */
export async function addAdminRoutes(app: FastifyInstance, parts: RouteParts): Promise<void> {
  await app.register(async (admin) => {
    admin.addHook("onRequest", createOperatorCheck(parts));
    addEconomicsRoute(admin, parts);
  });
}
