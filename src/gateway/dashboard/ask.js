const ANSWER_WITHIN_MS = 10_000;

/** What the gateway answers to a GET; throws where nothing comes in time. The browser adds the session by itself. */
export async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(ANSWER_WITHIN_MS) });
  return { status: answer.status, body: await answer.json() };
}
