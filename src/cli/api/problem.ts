/** What can go wrong between a command and our API, as a person reads it and as a command decides by it. */
import { errorCode } from "#platform/error-code.ts";
import { withoutSecrets } from "#platform/log.ts";

import { EXIT, type ExitCode } from "../exit-codes.ts";
import { visible } from "../output.ts";
import { UserError } from "../user-error.ts";
import { parseWireJson } from "#contract/wire-json.ts";

const DETAIL_CHARS_MAX = 500;

/** The server's refusal, or its absence. */
export class ApiProblem extends UserError {
  override readonly name = "ApiProblem";
  override readonly exitCode: ExitCode;
  /** Null when there was no answer at all. */
  readonly status: number | null;
  /** `error.code` of the answer; null where something else than our server answered, or nobody. */
  readonly code: string | null;
  readonly detail: unknown;
  readonly retryAfterMs: number | null;

  constructor(
    message: string,
    facts: { status: number | null; code: string | null; detail?: unknown; retryAfterMs?: number | null },
    options: { cause?: unknown } = {},
  ) {
    super(visible(message), options);
    this.status = facts.status;
    this.code = facts.code;
    this.detail = facts.detail;
    this.retryAfterMs = facts.retryAfterMs ?? null;
    this.exitCode = facts.code === "insufficient_credits" ? EXIT.insufficientCredits : EXIT.error;
  }
}

/** An answer that is no 2xx. Reads its body. */
export async function problemOf(response: Response): Promise<ApiProblem> {
  const { status, headers, url } = response;
  const body = bodyOf(await response.text().catch(() => "")); // a broken body leaves the status, which says enough
  const requestId = body.request_id ?? headers.get("x-dreamengine-request-id");
  const where = requestId === null ? `${status} from ${withoutQuery(url)}` : `${status}, ${requestId}`;
  const retryAfterS = Number(headers.get("retry-after") ?? Number.NaN);
  return new ApiProblem(`${body.code === null ? "" : `${body.code}: `}${body.message} (${where})`, {
    status,
    code: body.code,
    detail: body.detail,
    retryAfterMs: Number.isFinite(retryAfterS) && retryAfterS >= 0 ? retryAfterS * 1_000 : null,
  });
}

/** No answer, or one that broke off. */
export function noAnswer(url: string, error: unknown): ApiProblem {
  const code = error instanceof Error ? errorCode(error.cause) : undefined;
  const { reason, advice } = UNREACHABLE[code ?? ""] ?? {
    reason: reasonOf(error),
    advice: "Is the server running (npm start)?",
  };
  return new ApiProblem(
    `No answer from ${withoutQuery(url)}: ${reason}. ${advice}`,
    { status: null, code: null },
    { cause: error },
  );
}

const ANOTHER = "name the one that runs by --url, or by PUBLIC_URL in the environment";
/** What a person can do about, by the system's code. */
const UNREACHABLE: Readonly<Record<string, { readonly reason: string; readonly advice: string }>> = {
  ECONNREFUSED: { reason: "no server runs there", advice: `Start it (npm start), or ${ANOTHER}.` },
  ENOTFOUND: { reason: "there is no such host", advice: `If it is another one, ${ANOTHER}.` },
};

interface ErrorBody {
  readonly code: string | null;
  readonly message: string;
  readonly request_id: string | null;
  readonly detail: unknown;
}

function bodyOf(text: string): ErrorBody {
  let body: unknown = null;
  try {
    body = parseWireJson(text);
  } catch {
    // Not JSON: some proxy in between. Its text is all there is.
  }
  const error: object = recordOf(recordOf(body)["error"]);
  const { code, message, request_id } = error as Partial<Record<string, unknown>>;
  return {
    code: typeof code === "string" ? code : null,
    message: typeof message === "string" ? message : text.slice(0, DETAIL_CHARS_MAX).trim() || "no text",
    request_id: typeof request_id === "string" ? request_id : null,
    detail: recordOf(body)["detail"],
  };
}

function recordOf(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? { ...value } : {};
}

/** What signs a link to a video is as good as the video. */
function withoutQuery(url: string): string {
  return withoutSecrets(url.split("?", 1)[0] ?? url);
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error && error.cause.message !== "" ? error.cause.message : error.message;
}
