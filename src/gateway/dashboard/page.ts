/**
 * The operator's page as one document: the files beside this one, its styles and its script inside it, because an operator's
 * page should load where nothing else does. Nothing is built: the script's modules are put one after the other as they stand,
 * without their imports, and the policy allows exactly these texts by their hashes and nothing else.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

export interface Page {
  readonly html: string;
  /** Content-Security-Policy. */
  readonly policy: string;
}

/** In the order in which they build on each other. */
const SCRIPTS = [
  "format.js",
  "history.js",
  "elements.js",
  "charts.js",
  "panels.js",
  "money.js",
  "ask.js",
  "dialog.js",
  "main.js",
];

const STYLES = ["theme.css", "now.css", "tables.css", "narrow.css"];
const LOGIN_STYLES = ["theme.css", "login.css"];

/** Throws where a file is missing or its script would not stand alone. */
export function readDashboardPage(): Page {
  return assemble(read("dashboard.html"), { style: joined(STYLES), script: joinModules(SCRIPTS) });
}

/** `problem` is told above the form. */
export function readLoginPage(): (problem: string | null) => Page {
  const html = read("login.html");
  const style = joined(LOGIN_STYLES);
  return (problem) =>
    assemble(
      html.replace("<!-- problem -->", () => escaped(problem ?? "")),
      { style, script: null },
    );
}

const joined = (names: readonly string[]): string => names.map(read).join("\n");

const read = (name: string): string => readFileSync(new URL(name, import.meta.url), "utf8");

function assemble(html: string, { style, script }: { style: string; script: string | null }): Page {
  // The hash is of all that stands between the tags. Functions, because "$&" in a replacement would be something else.
  const whole = html
    .replace(/(?<=<style>).*?(?=<\/style>)/s, () => style)
    .replace(/(?<=<script type="module">).*?(?=<\/script>)/s, () => script ?? "");
  return {
    html: whole,
    policy: [
      "default-src 'none'",
      `style-src ${sourceOf(style)}`,
      ...(script === null
        ? []
        : [
            `script-src ${sourceOf(script)}`,
            "connect-src 'self'",
            // Whatever a customer called itself, no text ever becomes markup or script.
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
          ]),
      "img-src data:",
      "form-action 'self'",
      "base-uri 'none'",
      "frame-ancestors 'none'",
    ].join("; "),
  };
}

const sourceOf = (text: string): string => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;

const IMPORT = /^import \{[^}]*\} from "\.\/[a-z-]+\.js";\n/gm;

function joinModules(names: readonly string[]): string {
  const whole = names
    .map((name) =>
      read(name)
        .replaceAll(IMPORT, "")
        .replaceAll(/^export (?=const|function|async function)/gm, ""),
    )
    .join("\n");
  const left = /^(?:import|export)\b.*/m.exec(whole)?.[0];
  if (left !== undefined) throw new Error(`the page's script cannot be put in one piece because of: ${left}`);
  if (whole.includes("</script")) throw new Error("the page's script would end at a closing tag inside it");
  return whole;
}

const escaped = (text: string): string => text.replaceAll(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
