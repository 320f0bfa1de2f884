/* The gallery's page. Text from a run is only ever set as text. Values come in a script of each image, since a page on a disk may
   load scripts and pictures but read neither. */

const gallery = (() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const documents = read("documents"), teachers = read("teachers");
  const at = (id) => document.getElementById(id);
  const cards = new Map([...document.querySelectorAll(".image")].map((card) => [card.dataset.name, card]));
  const waiting = new Map(), loaded = new Map();
  let shown = [...cards.keys()], open = null, split = 50;

  /* --- which images are shown ------------------------------------------------------------------------------------ */

  const filters = at("filters");
  const number = (name) => { const text = filters.elements[name].value; return text === "" ? null : Number(text); };
  const between = (value, from, to) => (from === null && to === null) || (value !== null && value !== undefined && (from === null || value >= from) && (to === null || value <= to));

  function matches(entry) {
    const { key, source, status, teacher } = filters.elements;
    const of = entry.teachers.find((one) => one.name === teacher.value);
    const from = number("value-from"), to = number("value-to");
    return entry.key.toLowerCase().includes(key.value.toLowerCase())
      && (!source.value || entry.source === source.value)
      && (!status.value || entry.status === status.value)
      && between(entry.agreement.abs_rel, number("apart-from"), number("apart-to"))
      && between(of ? of.low : null, from, null) && between(of ? of.high : null, null, to);
  }

  function inOrder(names) {
    const apart = (name) => documents[name].agreement.abs_rel;
    const known = (compare) => (a, b) => (apart(a) === null) - (apart(b) === null) || compare(a, b) || documents[a].order - documents[b].order;
    return names.sort({
      order: (a, b) => documents[a].order - documents[b].order,
      apart: known((a, b) => apart(b) - apart(a)),
      together: known((a, b) => apart(a) - apart(b)),
      key: (a, b) => documents[a].key.localeCompare(documents[b].key, "en", { numeric: true }),
    }[filters.elements.order.value]);
  }

  function update() {
    shown = inOrder([...cards.keys()].filter((name) => matches(documents[name])));
    const visible = new Set(shown);
    for (const [name, card] of cards) card.hidden = !visible.has(name);
    at("images").append(...shown.map((name) => cards.get(name)));
    at("count").textContent = `${shown.length} of ${cards.size} images`;
    at("nothing").hidden = shown.length > 0;
  }

  filters.addEventListener("input", update);
  filters.addEventListener("reset", () => setTimeout(update));
  filters.addEventListener("submit", (event) => event.preventDefault());
  at("again").addEventListener("click", () => filters.reset());

  /* --- the values of an image ------------------------------------------------------------------------------------- */

  async function unpacked(label) {
    const packed = Uint8Array.from(atob(label.codes), (character) => character.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer()), count = label.width * label.height;
    const values = new Float32Array(count);
    for (let i = 0, code = 0; i < count; i++) {
      if (i % label.width === 0) code = 0;
      code = (code + planes[i] + 256 * planes[count + i]) & 65535;
      values[i] = code ? label.offset + label.scale * (code - 1) : NaN;
    }
    return { width: label.width, height: label.height, values };
  }

  async function pixelsOf(uri, width, height) {
    const image = new Image();
    image.src = uri;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, width, height);
    return new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
  }

  function load(name) {
    if (!loaded.has(name)) {
      loaded.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `images/${name}/labels.js`;
        script.onload = () => resolve(waiting.get(script.src));
        script.onerror = () => reject(new Error("the values cannot be read"));
        gallery.labels = (content) => waiting.set(document.currentScript.src, content);
        document.head.append(script);
      }).then(async (content) => {
        const labels = await Promise.all(content.labels.map(unpacked));
        const { width, height } = labels[0];
        return { labels, rgb: await pixelsOf(content.photo, width, height) };
      }));
      if (loaded.size > 12) loaded.delete(loaded.keys().next().value);
    }
    return loaded.get(name);
  }

  /* --- the large view --------------------------------------------------------------------------------------------- */

  const viewer = at("viewer"), stage = at("stage"), cloud = new PointCloud(at("cloud"));
  let values = null;

  function pictures(entry) {
    const found = entry.photo ? [["photograph", entry.photo]] : [];
    for (const teacher of entry.teachers) {
      found.push([`${teacher.name}: label`, teacher.label]);
      if (teacher.close_ups) found.push([`${teacher.name}: ${teacher.num_close_ups} close-ups, stitched`, teacher.close_ups]);
    }
    for (const teacher of entry.teachers) if (teacher.difference) found.push([teacher.apart, teacher.difference]);
    return found;
  }

  function choose(select, options, wanted) {
    select.replaceChildren(...options.map(([text, value]) => new Option(text, value)));
    select.value = options.some(([, value]) => value === wanted) ? wanted : options.length ? options[0][1] : "";
  }

  function showPictures() {
    at("over").src = `images/${open}/${at("left").value}`;
    at("under").src = `images/${open}/${at("right").value}`;
    at("over").alt = `Left: ${at("left").selectedOptions[0].text}`;
    at("under").alt = `Right: ${at("right").selectedOptions[0].text}`;
  }

  function slide(percent) {
    split = Math.max(0, Math.min(100, percent));
    stage.style.setProperty("--split", `${split}%`);
    at("split").value = split;
  }

  const shownValue = (value) => (Number.isNaN(value) ? "no label" : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(3) : value.toPrecision(5).replace(/\.?0+$/, ""));

  function showValues(x, y) {
    const rows = [...at("values").rows];
    at("stage").querySelector(".cross").hidden = x === null;
    if (x === null || !values) {
      for (const row of rows) row.cells[1].textContent = "–";
      at("values-note").textContent = "Point at the picture to read the labels' own values.";
      return;
    }
    stage.style.setProperty("--x", `${100 * x}%`);
    stage.style.setProperty("--y", `${100 * y}%`);
    const { width, height } = values.labels[0];
    const column = Math.min(width - 1, Math.floor(x * width)), row = Math.min(height - 1, Math.floor(y * height));
    values.labels.forEach((label, i) => { rows[i].cells[1].textContent = `${shownValue(label.values[row * width + column])} ${unitOf(i)}`.trim(); });
    at("values-note").textContent = `At row ${row}, column ${column} of ${height} x ${width}.`;
  }

  const unitOf = (i) => teachers[documents[open].teachers[i].name].unit;

  function showCloud() {
    const entry = documents[open], i = entry.teachers.findIndex((teacher) => teacher.name === at("cloud-teacher").value);
    if (!values || i < 0) { cloud.clear(); return; }
    const space = entry.teachers[i].space, deep = Number(at("deep").value), metric = space.includes("metric");
    at("deep-part").hidden = metric;
    at("deep-shown").textContent = `${deep} : 1`;
    at("cloud-note").textContent = metric
      ? "As far as the label says, for a camera that sees 58° along the longer side."
      : "This label fixes depth only up to scale and shift: how deep the scene is, is your choice here. The camera sees 58° along the longer side.";
    const found = pointsOf(values.labels[i], space, deep, values.rgb);
    if (!found) { cloud.clear(); return; }
    cloud.show(found);
  }

  function told(entry) {
    const agreement = entry.agreement, one = (value) => (value === null ? "nothing to compare" : value.toFixed(3));
    const found = [["Source", entry.source], ["Status", entry.status.replace("_", " ")]];
    if (entry.size) found.push(["Photograph", `${entry.size[1]} x ${entry.size[0]} px`]);
    if (entry.teachers.length > 1) found.push(["AbsRel between teachers", one(agreement.abs_rel)], ["Correlation", one(agreement.correlation)], ["Edge F1", one(agreement.edge_f1)]);
    const without = new Map();
    for (const [name, status, reason] of entry.columns) {
      const text = `${status.replace("_", " ")}${reason ? `: ${reason}` : ""}`;
      if (status !== "labelled") without.set(text, [...(without.get(text) || []), name]);
    }
    for (const [text, names] of without) found.push([names.join(", "), text]);
    if (entry.trouble) found.push(["Trouble", entry.trouble]);
    at("told").replaceChildren(...found.flatMap(([name, text]) => [["dt", name], ["dd", text]].map(([tag, content]) => Object.assign(document.createElement(tag), { textContent: content }))));
  }

  function rowOf(teacher) {
    const { near_is_large, unit } = teachers[teacher.name], row = document.createElement("tr");
    const range = `${shownValue(teacher.low)} to ${shownValue(teacher.high)} ${unit}`.trim();
    for (const text of [teacher.name, "–", `${range}, near is ${near_is_large ? "large" : "small"}`, teacher.valid < 1 ? `${(100 - 100 * teacher.valid).toFixed(1)} %` : "none"]) row.insertCell().textContent = text;
    return row;
  }

  function view(name) {
    const entry = documents[name], found = pictures(entry), before = [at("left").value, at("right").value];
    open = name;
    values = null;
    at("viewer-key").textContent = entry.key;
    at("place").textContent = `${shown.indexOf(name) + 1} of ${shown.length}`;
    for (const [id, wanted] of [["left", before[0] || "photo.jpg"], ["right", before[1] || (entry.teachers.length ? entry.teachers[entry.teachers.length - 1].label : "")]]) choose(at(id), found, wanted);
    for (const part of document.querySelectorAll(".sides, .slide, .divider, .sides-note")) part.hidden = found.length < 2;
    stage.hidden = !found.length;
    at("empty").hidden = found.length > 0;
    at("cloud-part").hidden = document.querySelector(".values").hidden = at("values-note").hidden = !entry.teachers.length;
    at("values").replaceChildren(...entry.teachers.map(rowOf));
    choose(at("cloud-teacher"), entry.teachers.map((teacher) => [teacher.name, teacher.name]), at("cloud-teacher").value || (entry.teachers.length ? entry.teachers[entry.teachers.length - 1].name : ""));
    told(entry);
    showValues(null);
    if (found.length) showPictures();
    slide(found.length > 1 ? split : 100);
    if (!viewer.open) { cloud.reset(); viewer.showModal(); at("next").focus(); }
    viewer.scrollTop = 0;
    history.replaceState(null, "", `#${name}`);
    cloud.clear();
    if (entry.teachers.length) {
      load(name).then((content) => { if (open === name) { values = content; fit(); showValues(null); showCloud(); viewer.dataset.ready = name; } })
        .catch((error) => { if (open === name) at("values-note").textContent = `No values: ${error.message}.`; });
    } else viewer.dataset.ready = name;
  }

  const fit = () => { const image = at("under"); if (image.naturalWidth) at("comparison").style.setProperty("--aspect", image.naturalWidth / image.naturalHeight); };
  at("under").addEventListener("load", fit);

  function step(by) {
    const place = shown.indexOf(open);
    if (shown.length) view(shown[(place + by + shown.length) % shown.length]);
  }

  at("images").addEventListener("click", (event) => {
    const card = event.target.closest(".image");
    if (!card || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    view(card.dataset.name);
  });
  viewer.addEventListener("close", () => {
    cloud.clear();
    history.replaceState(null, "", location.pathname + location.search);
    const card = cards.get(open);
    if (card) { card.scrollIntoView({ block: "nearest" }); card.querySelector("a").focus(); }
    open = null;
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.target.matches("select, input, canvas") && event.key.startsWith("Arrow")) return;
    const by = { n: 1, ArrowRight: 1, p: -1, ArrowLeft: -1 }[event.key];
    if (by && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.matches("select")) { event.preventDefault(); step(by); }
  });
  at("close").addEventListener("click", () => viewer.close());
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  for (const id of ["left", "right"]) at(id).addEventListener("change", showPictures);
  at("split").addEventListener("input", () => slide(Number(at("split").value)));
  at("cloud-teacher").addEventListener("change", showCloud);
  at("deep").addEventListener("input", showCloud);
  at("turn").addEventListener("click", () => cloud.turn(!cloud.turning));
  cloud.onturn = (on) => at("turn").setAttribute("aria-pressed", on);

  const place = (event) => { const box = stage.getBoundingClientRect(); return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]; };
  stage.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    if (event.buttons) slide(100 * x);
    if (x >= 0 && x < 1 && y >= 0 && y < 1) showValues(x, y);
  });
  stage.addEventListener("pointerdown", (event) => { event.preventDefault(); stage.setPointerCapture(event.pointerId); const [x, y] = place(event); slide(100 * x); showValues(x, y); });
  stage.addEventListener("pointerleave", () => showValues(null));

  function begin() {
    const wide = matchMedia("(min-width: 901px)"), adapt = () => { at("panel").open = wide.matches; };
    at("panel").hidden = false;
    adapt();
    wide.addEventListener("change", adapt);
    update();
    const name = location.hash.slice(1);
    if (cards.has(name)) view(name);
  }
  addEventListener("hashchange", () => { const name = location.hash.slice(1); if (cards.has(name) && name !== open) view(name); });
  document.readyState === "loading" ? addEventListener("DOMContentLoaded", begin) : setTimeout(begin);
  return {};
})();
