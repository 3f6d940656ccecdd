// Cartoon portraits in the styles of avatars.py, put together by DiceBear: a line of JSON for each.
//
//     npm install @dicebear/core@9.4.3 @dicebear/{adventurer,big-smile,dylan,lorelei}@9.4.3 \
//         @dicebear/{miniavs,open-peeps,pixel-art,thumbs}@9.4.3 @resvg/resvg-js@2.6.2
//     node avatars.mjs COUNT OUT.jsonl [SIDE]
//
// It draws COUNT portraits of each style, SIDE x SIDE pixels (160), which is best four times the
// side of the pictures that they are for. A line has the style, the seed, and in base64 the PNG
// file, which is transparent around the portrait. The packages are those of the folder that this
// is run in.

import { closeSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { argv, cwd, exit } from "node:process";
import { pathToFileURL } from "node:url";

const VERSIONS = { dicebear: "9.4.3", resvg: "2.6.2" };
// Three styles have so few colours of their own that portraits would come again and again.
const SKIN = ["ffd6c0", "c26450", "f1c27d", "8d5524", "5c3829"];
const HAIR = ["000000", "ff543d", "fff500", "1d5dff", "ffffff", "5a2d0c", "a55728", "8a8f98"];
const CLOTHES = ["e05a33", "3633e0", "ff4dd8", "2e933c", "f1f4dc", "f2b632", "3a3a4a"];
const THUMB = ["0a5b83", "69d2e7", "f1f4dc", "f88c49", "d1495b", "2e933c", "7b4fa3", "edc531"];

/** Return the options of each style: sizes and shifts, in per cent, let the head fill the frame. */
function options(side) {
  // The squares of pixel art, 16 in a row, are to be whole pixels when reduced four times.
  const square = 4 * Math.max(1, Math.round((1.15 * side) / 64));
  const pixels = (100 * 16 * square) / side;
  return {
    "adventurer": { scale: 125, translateY: 2 },
    "big-smile": { scale: 112, translateY: 4 },
    "dylan": { scale: 112, translateY: 2, skinColor: SKIN, hairColor: HAIR },
    "lorelei": { scale: 125, translateY: 6 },
    "miniavs": { scale: 118, translateY: 8, skinColor: SKIN, hairColor: HAIR, bodyColor: CLOTHES },
    "open-peeps": { scale: 112, translateY: 6 },
    "pixel-art": { scale: pixels, translateY: (pixels - 100) / 4 },
    "thumbs": { scale: 95, translateY: 3, shapeColor: THUMB },
  };
}

/** Return the folder of a package, and refuse another version than was asked for. */
function locate(name, version) {
  const required = createRequire(join(cwd(), "/"));
  for (const folder of required.resolve.paths(name)) {
    let found;
    try {
      found = required(join(folder, name, "package.json")).version;
    } catch {
      continue;
    }
    if (found === version) return join(folder, name);
    throw new Error(`${name} is ${found}: npm install ${name}@${version}`);
  }
  throw new Error(`there is no ${name} in ${cwd()}: npm install ${name}@${version}`);
}

/** Import a package of DiceBear. */
function load(name) {
  return import(pathToFileURL(join(locate(name, VERSIONS.dicebear), "lib", "index.js")));
}

/** Draw all portraits into a file. */
async function draw(count, file, side) {
  const { createAvatar } = await load("@dicebear/core");
  const renderer = locate("@resvg/resvg-js", VERSIONS.resvg);
  const { Resvg } = createRequire(join(renderer, "/"))(renderer);
  const styles = [];
  for (const [name, choice] of Object.entries(options(side))) {
    styles.push([name, await load(`@dicebear/${name}`), choice]);
  }
  const partial = `${file}.partial`; // so that no file is half written
  const stream = openSync(partial, "w");
  try {
    for (const [style, drawings, choice] of styles) {
      for (let number = 0; number < count; number++) {
        const seed = `${style} ${number}`;
        const svg = createAvatar(drawings, { ...choice, seed, backgroundColor: ["transparent"] });
        const picture = new Resvg(svg.toString(), { fitTo: { mode: "width", value: side } });
        const png = picture.render().asPng().toString("base64");
        writeSync(stream, `${JSON.stringify({ style, seed, png })}\n`);
      }
    }
    closeSync(stream);
    renameSync(partial, file);
  } finally {
    rmSync(partial, { force: true });
  }
}

const [count, side] = [Number(argv[2]), Number(argv[4] ?? 160)];
try {
  if (!argv[3] || ![count, side].every((number) => Number.isInteger(number) && number > 0)) {
    throw new Error("a number of portraits and a file are needed: avatars.mjs 3000 avatars.jsonl");
  }
  await draw(count, argv[3], side);
} catch (error) {
  console.error(error.message);
  exit(1);
}
