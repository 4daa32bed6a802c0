/** The bodies that Stripe takes: form-encoded, nested by brackets. */
export type FormValue = string | FormValue[] | { [key: string]: FormValue };

/** `a[b][0]=x` → {a: {b: ["x"]}}. */
export function parseForm(text: string): Record<string, FormValue> {
  const root: { [key: string]: FormValue } = {};
  for (const [path, value] of new URLSearchParams(text)) {
    const keys = path.replaceAll("]", "").split("[");
    let at = root;
    for (const [depth, key] of keys.entries()) {
      if (depth === keys.length - 1) {
        at[key] = value;
        continue;
      }
      const next = at[key];
      if (typeof next === "object" && !Array.isArray(next)) at = next;
      else at = at[key] = {};
    }
  }
  return asArrays(root) as Record<string, FormValue>; // the root has names, not numbers
}

/** Objects whose keys count from zero are lists. */
function asArrays(value: FormValue): FormValue {
  if (typeof value === "string" || Array.isArray(value)) return value;
  const entries = Object.entries(value).map(([key, inner]) => [key, asArrays(inner)] as const);
  const isList = entries.length > 0 && entries.every(([key], index) => key === String(index));
  return isList ? entries.map(([, inner]) => inner) : Object.fromEntries(entries);
}

/** A field somewhere in it; undefined where there is none. */
export function field(form: FormValue | undefined, ...path: (string | number)[]): string | undefined {
  let at = form;
  for (const key of path) {
    if (at === undefined || typeof at === "string") return undefined;
    at = Array.isArray(at) ? at[Number(key)] : at[key];
  }
  return typeof at === "string" ? at : undefined;
}

/** A record of texts, such as metadata. */
export function texts(form: FormValue | undefined): Record<string, string> {
  if (form === undefined || typeof form === "string" || Array.isArray(form)) return {};
  return Object.fromEntries(
    Object.entries(form).flatMap(([key, value]) => (typeof value === "string" ? [[key, value]] : [])),
  );
}
