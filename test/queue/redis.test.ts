/** What only the Redis backend can get wrong. */
import { beforeAll, expect, test } from "vitest";

import { createRedisQueues } from "#queue/redis.ts";
import type { Signal } from "#queue/signals.ts";

import { silentLog } from "../support/postgres.ts";
import { freshRedisUrl } from "../support/redis.ts";
import { eventually } from "./test-queue.ts";

const urls: string[] = [];
beforeAll(async () => void urls.push(await freshRedisUrl(), await freshRedisUrl()));

test("a server that is not there is reported with the reason, and without the password", async () => {
  const opening = createRedisQueues({ url: "redis://user:hush@127.0.0.1:1", log: silentLog });
  await expect(opening).rejects.toThrow(/^cannot use Redis: connect ECONNREFUSED 127\.0\.0\.1:1$/);
});

test("signals of another database on the same server are not heard", async () => {
  const [here, there] = await Promise.all(urls.map((url) => createRedisQueues({ url, log: silentLog })));
  const heard: Signal[] = [];
  await here?.signals.subscribe(["finished"], (signal) => heard.push(signal));
  await there?.signals.publish({ kind: "finished", rollout_id: "theirs" });
  await here?.signals.publish({ kind: "finished", rollout_id: "ours" });
  await eventually(async () => heard.length > 0);
  expect(heard).toEqual([{ kind: "finished", rollout_id: "ours" }]);
  await Promise.all([here?.stop(), there?.stop()]);
});
