// The picture of roilib.apps.playground.widgets.PictureView: two pictures under a wipe, boxes to draw on them, magnified ROIs, a table, and a stopwatch.

const COLOURS = ["#f0c000", "#ff8c42", "#56b4e9"]; // of the tiers of importance
const GRIP = 12; // pixels on screen at which a corner is caught
const LEAST = 4; // picture pixels of a box's side
const MAX_HEIGHT = "min(400px, 38vh)"; // of the stage, so that all fits a screen of 1280x720
const ZOOM_SHAPE = [420, 280]; // of a magnified ROI

const HINT = "Drag to draw a box; drag a box to move it, its corners to resize it; hold Shift to draw inside a box; Delete or × removes it. Drag the line to compare.";

function element(parent, tag, className = "", text = "") {
  const made = parent.appendChild(document.createElement(tag));
  made.className = className;
  made.textContent = text;
  return made;
}

function drawn(parent, tag, className, attributes) {
  const made = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
  made.setAttribute("class", className);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function build(el) {
  const root = element(el, "div", "roi-view");
  root.dataset.lmSuppressShortcuts = "true"; // Delete is ours, not JupyterLab's
  const stage = element(root, "div", "roi-stage");
  stage.tabIndex = 0;
  const pictures = Object.fromEntries(["theirs", "ours", "heat"].map((name) => [name, element(stage, "img", `roi-${name}`)]));
  for (const img of Object.values(pictures)) img.draggable = false;
  pictures.original = new Image();
  const svg = drawn(stage, "svg", "", { preserveAspectRatio: "none" });
  const wipe = element(stage, "div", "roi-wipe");
  const tags = ["left", "right"].map((side) => element(stage, "span", `roi-tag ${side}`));
  element(stage, "span", "roi-mark", "working …");
  const error = element(root, "p", "roi-error");
  const hint = element(root, "div", "roi-hint");
  element(hint, "span", "", HINT);
  const clock = element(hint, "span", "roi-clock");
  const below = element(root, "div", "roi-below");
  const panels = element(below, "div", "roi-panels");
  return { root, stage, pictures, svg, wipe, tags, error, clock, panels, table: element(below, "table") };
}

// Loads the bytes of a trait into an image; resolves when it can be painted.
async function load(img, model, trait) {
  const bytes = model.get(trait);
  if (img.bytes === bytes) return;
  img.bytes = bytes;
  const old = img.src;
  if (bytes.byteLength) {
    img.src = URL.createObjectURL(new Blob([bytes]));
    await img.decode().catch(() => {}); // replaced meanwhile
  } else img.removeAttribute("src");
  if (old) URL.revokeObjectURL(old);
}

function writeTable(table, model) {
  table.replaceChildren();
  for (const [i, name] of model.get("head").entries()) {
    const row = element(table, "tr");
    element(row, "th", "", name);
    for (const { cells, stale } of model.get("columns")) element(row, "td", stale ? "stale" : "", cells[i]);
  }
}

// The part of the picture to magnify: a box with a margin, grown to the panel's shape and kept inside.
function zoomed([x0, y0, x1, y1], [width, height]) {
  const shape = ZOOM_SHAPE[0] / ZOOM_SHAPE[1];
  const tall = Math.min(height, 1.16 * Math.max(y1 - y0, (x1 - x0) / shape, 16), width / shape);
  const place = (low, high, side, limit) => Math.min(Math.max((low + high - side) / 2, 0), limit - side);
  return [place(x0, x1, tall * shape, width), place(y0, y1, tall, height), tall * shape, tall];
}

function magnify(panels, pictures, model, box) {
  panels.replaceChildren();
  const size = model.get("size");
  const region = zoomed(box ?? [size[0] / 2 - 60, size[1] / 2 - 30, size[0] / 2 + 60, size[1] / 2 + 30], size);
  const [left, right] = model.get("names");
  for (const [img, name] of [[pictures.original, "original"], [pictures.ours, left], [pictures.theirs, right]]) {
    if (img === pictures.theirs && right === "original") continue;
    const figure = element(panels, "figure");
    const canvas = element(figure, "canvas");
    [canvas.width, canvas.height] = ZOOM_SHAPE;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    if (img.complete && img.naturalWidth) context.drawImage(img, ...region, 0, 0, ...ZOOM_SHAPE);
    element(figure, "figcaption", "", name);
  }
}

// Boxes that the mouse draws, moves, resizes and deletes; `changed` is called after each change and selection.
function editor(model, { stage, svg }, changed) {
  let boxes = [];
  let selected = -1;
  let grip = null; // what the mouse holds: {kind, start, box}

  const scale = () => model.get("size")[0] / stage.clientWidth || 1; // picture pixels a screen pixel
  const at = (event) => {
    const place = svg.getBoundingClientRect();
    const [width, height] = model.get("size");
    const inside = (value, limit) => Math.round(Math.min(Math.max(value, 0), limit));
    return [inside(((event.clientX - place.left) * width) / place.width, width), inside(((event.clientY - place.top) * height) / place.height, height)];
  };
  const colour = (importance) => {
    const distances = model.get("tiers").map((tier) => Math.abs(Math.log(tier / importance)));
    return COLOURS[distances.indexOf(Math.min(...distances)) % COLOURS.length];
  };
  const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
  const corners = ([x0, y0, x1, y1]) => [[x0, y0], [x1, y0], [x0, y1], [x1, y1]];

  function paint() {
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${model.get("size").join(" ")}`);
    const order = boxes.map((_, i) => i).sort((a, b) => area(boxes[b]) - area(boxes[a])); // small ones on top
    for (const i of order) {
      const [x0, y0, x1, y1, importance] = boxes[i];
      const place = { x: x0, y: y0, width: x1 - x0, height: y1 - y0, stroke: colour(importance) };
      drawn(svg, "rect", `roi-box${i === selected ? " selected" : ""}`, { ...place, "data-box": i });
    }
    if (selected >= 0) paintGrips(boxes[selected]);
  }

  function paintGrips(box) {
    const pixel = scale();
    for (const [i, [x, y]] of corners(box).entries()) {
      const cursor = i === 0 || i === 3 ? "nwse-resize" : "nesw-resize";
      drawn(svg, "rect", "roi-handle", { x: x - 4 * pixel, y: y - 4 * pixel, width: 8 * pixel, height: 8 * pixel, style: `cursor: ${cursor}` });
    }
    const [width] = model.get("size");
    const [x, y] = [Math.min(box[2] + 14 * pixel, width - 9 * pixel), Math.max(box[1] + 2 * pixel, 9 * pixel)];
    const button = drawn(svg, "g", "roi-delete", { "data-delete": "", transform: `translate(${x} ${y}) scale(${pixel})` });
    drawn(button, "circle", "", { r: 8, fill: "#c62828" });
    drawn(button, "path", "", { d: "M-3.5-3.5 3.5 3.5M3.5-3.5-3.5 3.5", stroke: "#fff", "stroke-width": 2 });
  }

  function select(i) {
    selected = i;
    if (i >= 0) {
      model.set("tier", boxes[i][4]);
      model.save_changes();
    }
    paint();
    changed();
  }

  function commit() {
    model.set("boxes", boxes.map((box) => [...box]));
    model.save_changes();
    paint();
    changed();
  }

  function remove() {
    if (selected < 0) return;
    boxes.splice(selected, 1);
    selected = -1;
    commit();
  }

  function grab(event) {
    if (event.button !== 0) return;
    stage.focus({ preventScroll: true });
    if (event.target.closest("[data-delete]")) return remove();
    const start = at(event);
    const near = ([x, y]) => Math.max(Math.abs(x - start[0]), Math.abs(y - start[1])) < GRIP * scale();
    const corner = selected >= 0 && !event.shiftKey ? corners(boxes[selected]).findIndex(near) : -1;
    const hit = event.shiftKey ? undefined : event.target.dataset.box;
    if (corner >= 0) grip = { kind: "corner", anchor: corners(boxes[selected])[3 - corner] };
    else if (hit !== undefined) {
      select(Number(hit));
      grip = { kind: "move", start, box: [...boxes[selected]] };
    } else grip = { kind: "draw", anchor: start };
    svg.setPointerCapture(event.pointerId);
  }

  function drag(event) {
    if (!grip) return;
    const [x, y] = at(event);
    if (grip.kind === "move") {
      const [width, height] = model.get("size");
      const [x0, y0, x1, y1, importance] = grip.box;
      const shift = (by, low, high, limit) => Math.min(Math.max(by, -low), limit - high);
      const [dx, dy] = [shift(x - grip.start[0], x0, x1, width), shift(y - grip.start[1], y0, y1, height)];
      boxes[selected] = [x0 + dx, y0 + dy, x1 + dx, y1 + dy, importance];
    } else {
      const [ax, ay] = grip.anchor;
      const corner = [Math.min(ax, x), Math.min(ay, y), Math.max(ax, x), Math.max(ay, y)];
      if (corner[2] - corner[0] < LEAST || corner[3] - corner[1] < LEAST) return;
      if (grip.kind === "draw") {
        boxes.push([...corner, model.get("tier")]);
        selected = boxes.length - 1;
        grip.kind = "corner";
      } else boxes[selected] = [...corner, boxes[selected][4]];
    }
    grip.moved = true;
    paint();
  }

  function drop() {
    if (grip?.moved) commit();
    else if (grip?.kind === "draw") select(-1);
    grip = null;
  }

  svg.addEventListener("pointerdown", grab);
  svg.addEventListener("pointermove", drag);
  svg.addEventListener("pointerup", drop);
  svg.addEventListener("pointercancel", drop);
  stage.addEventListener("keydown", (event) => {
    if (event.key === "Delete" || event.key === "Backspace") remove();
    else if (event.key === "Escape") select(-1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return {
    paint,
    chosen: () => boxes[selected] ?? [...boxes].sort((a, b) => b[4] - a[4] || area(b) - area(a))[0],
    take() {
      if (grip) return; // the mouse has the newer ones
      boxes = model.get("boxes").map((box) => [...box]);
      if (selected >= boxes.length) selected = -1;
      paint();
    },
    retier() {
      if (selected < 0 || boxes[selected][4] === model.get("tier")) return;
      boxes[selected][4] = model.get("tier");
      commit();
    },
  };
}

function wiper({ stage, pictures, wipe }) {
  const move = (share) => {
    const percent = 100 * Math.min(Math.max(share, 0), 1);
    wipe.style.left = `${percent}%`;
    pictures.ours.style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
    stage.style.setProperty("--roi-wipe", percent / 100);
  };
  wipe.addEventListener("pointerdown", (event) => wipe.setPointerCapture(event.pointerId));
  wipe.addEventListener("pointermove", (event) => {
    const place = stage.getBoundingClientRect();
    if (wipe.hasPointerCapture(event.pointerId)) move((event.clientX - place.left) / place.width);
  });
  move(0.5);
}

// Milliseconds from the last move of a slider to the picture that was made with it.
function stopwatch(model, clock, sliders) {
  let asked = null;
  const answers = (value, i) => {
    const set = sliders[i]?.get("value");
    return value === null || set === undefined || Math.abs(set - value) <= (i === 2 ? 0.5 : 1e-9);
  };
  return {
    start: () => (asked = performance.now()),
    answered: () => model.get("values").every(answers),
    stop() {
      if (asked === null || !this.answered()) return;
      const times = [...model.get("latencies"), Math.round(performance.now() - asked)].slice(-50);
      asked = null;
      model.set("latencies", times);
      model.save_changes();
      const median = [...times].sort((a, b) => a - b)[times.length >> 1];
      clock.title = times.join(", ");
      clock.textContent = `slider to picture ${times.at(-1)} ms` + (times.length > 1 ? `, median of ${times.length}: ${median} ms` : "");
    },
  };
}

async function render({ model, el }) {
  const dom = build(el);
  const { root, stage, pictures, tags } = dom;
  const sliders = await Promise.all(model.get("watched").map((id) => model.widget_manager.get_model(id)));
  const watch = stopwatch(model, dom.clock, sliders);
  const zoom = () => magnify(dom.panels, pictures, model, boxes.chosen());
  const boxes = editor(model, dom, zoom);
  wiper(dom);

  const fit = () => {
    const [width, height] = model.get("size");
    stage.style.aspectRatio = `${width} / ${height}`;
    stage.style.maxWidth = `calc(${MAX_HEIGHT} * ${width / height})`;
    if (pictures.heat.naturalWidth) pictures.heat.style.setProperty("--roi-wide", (16 * pictures.heat.naturalWidth) / width); // cells of the padded picture
    boxes.paint();
  };
  const status = () => {
    const behind = root.dataset.shown !== String(model.get("shown")) || !watch.answered();
    root.classList.toggle("working", model.get("working") || (behind && !model.get("error")));
    dom.error.textContent = model.get("error");
  };
  const moved = () => {
    if (root.dataset.shown) watch.start();
    status();
  };
  async function show() {
    const result = model.get("shown");
    await Promise.all(Object.entries(pictures).map(([name, img]) => load(img, model, name)));
    if (result !== model.get("shown")) return;
    for (const [i, name] of model.get("names").entries()) tags[i].textContent = name;
    tags[0].textContent += model.get("legend") && ` · ${model.get("legend")}`;
    pictures.heat.hidden = !model.get("legend");
    writeTable(dom.table, model);
    fit();
    zoom();
    requestAnimationFrame(() => {
      watch.stop();
      root.dataset.shown = result;
      status();
    });
  }

  const takeBoxes = () => {
    boxes.take();
    zoom();
  };
  const listeners = { "change:shown": show, "change:boxes": takeBoxes, "change:tier": boxes.retier, "change:working": status, "change:error": status };
  for (const [event, act] of Object.entries(listeners)) model.on(event, act);
  for (const slider of sliders) slider.on("change:value", moved);
  const resized = new ResizeObserver(boxes.paint);
  resized.observe(stage);
  status();
  boxes.take();
  if (model.get("shown")) show();
  return () => {
    resized.disconnect();
    for (const [event, act] of Object.entries(listeners)) model.off(event, act);
    for (const slider of sliders) slider.off("change:value", moved);
  };
}

export default { render };
