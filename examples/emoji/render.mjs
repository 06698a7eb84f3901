// Renders SVGs to PNG on white. Reads a job file: {"icons": [{"svg": "...", "out": "..."}]}; prints the number of each
// icon when it is done, so that the parent knows where an abort of the renderer happened.
import { createRequire } from "node:module";
import { readFileSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";

const [, , npm, job] = process.argv;
const { Resvg } = createRequire(join(npm, "_.js"))("@resvg/resvg-js");
const { icons } = JSON.parse(readFileSync(job, "utf8"));
icons.forEach(({ svg, out }, number) => {
  let state = "done";
  try {
    const options = { background: "white", font: { loadSystemFonts: false } };
    writeFileSync(out, new Resvg(svg, options).render().asPng());
  } catch (error) {
    state = "failed";
  }
  writeSync(1, `${number} ${state}\n`);
});
