/* The large view: two pictures of an image under a slider, the values of its maps under the pointer, and a point cloud. What is
   shown comes from the page, as `entry(name)`, whose texts are only ever set as text:
   { key, pictures: [{ id, text, address }], left, right, maps: [{ name, space, low, high, valid }], told: [[name, text]], note }.
   left and right: the pictures that are beside each other first, by their ids. `values(name)` promises { photo, labels }: a picture's
   address, and each map as it was packed. `names()` are those that one goes through; `viewed(name)` and `closed(name)` are told. */

function makeViewer({ entry, values: read, names, viewed = () => {}, closed = () => {} }) {
  const at = (id) => document.getElementById(id);
  const viewer = at("viewer"), stage = at("stage"), cloud = new PointCloud(at("cloud")), loaded = new Map();
  let open = null, values = null, split = 50, chosen = {};

  /* --- values --------------------------------------------------------------------------------------------------------- */

  async function unpacked(label) {
    const packed = Uint8Array.from(atob(label.codes), (character) => character.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer()), count = label.width * label.height;
    const found = new Float32Array(count);
    for (let i = 0, code = 0; i < count; i++) {
      if (i % label.width === 0) code = 0;
      code = (code + planes[i] + 256 * planes[count + i]) & 65535;
      found[i] = code ? label.offset + label.scale * (code - 1) : NaN;
    }
    return { width: label.width, height: label.height, values: found };
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

  async function unpackedAll(name) {
    const content = await read(name), labels = await Promise.all(content.labels.map(unpacked));
    const sizes = new Map(labels.map(({ width, height }) => [`${width} ${height}`, [width, height]]));
    const pixels = new Map();
    for (const [size, [width, height]] of sizes) pixels.set(size, await pixelsOf(content.photo, width, height));
    return labels.map((label) => ({ ...label, rgb: pixels.get(`${label.width} ${label.height}`) }));
  }

  function load(name) {
    if (!loaded.has(name)) {
      loaded.set(name, unpackedAll(name));
      if (loaded.size > 12) loaded.delete(loaded.keys().next().value);
    }
    return loaded.get(name);
  }

  const unitOf = ({ space }) => ({ depth_metric: "m", disparity_metric: "1/m" }[space] || "");
  const shownValue = (value) => (Number.isNaN(value) ? "no value" : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(3) : value.toPrecision(5).replace(/\.?0+$/, ""));

  function showValues(x, y) {
    const rows = [...at("values").rows], { maps } = entry(open);
    stage.querySelector(".cross").hidden = x === null;
    if (x === null || !values) {
      for (const row of rows) row.cells[1].textContent = "–";
      at("values-note").textContent = "Point at the picture to read the maps' own values.";
      return;
    }
    stage.style.setProperty("--x", `${100 * x}%`);
    stage.style.setProperty("--y", `${100 * y}%`);
    const place = ({ width, height }) => [Math.min(height - 1, Math.floor(y * height)), Math.min(width - 1, Math.floor(x * width))];
    values.forEach((map, i) => {
      const [row, column] = place(map);
      rows[i].cells[1].textContent = `${shownValue(map.values[row * map.width + column])} ${unitOf(maps[i])}`.trim();
    });
    const [row, column] = place(values[0]);
    at("values-note").textContent = `At row ${row}, column ${column} of ${values[0].height} x ${values[0].width}.`;
  }

  function rowOf(map) {
    const row = document.createElement("tr"), range = `${shownValue(map.low)} to ${shownValue(map.high)} ${unitOf(map)}`.trim();
    const near = map.space.includes("disparity") ? "large" : "small";
    for (const text of [map.name, "–", `${range}, near is ${near}`, map.valid < 1 ? `${(100 - 100 * map.valid).toFixed(1)} %` : "none"]) row.insertCell().textContent = text;
    return row;
  }

  function showCloud() {
    const { maps } = entry(open), i = maps.findIndex((map) => map.name === at("cloud-map").value);
    if (!values || i < 0) { cloud.clear(); return; }
    const { space } = maps[i], deep = Number(at("deep").value), metric = space.includes("metric");
    at("deep-part").hidden = metric;
    at("deep-shown").textContent = `${deep} : 1`;
    at("cloud-note").textContent = metric
      ? "As far as the map says, for a camera that sees 58° along the longer side."
      : "This map fixes depth only up to scale and shift: how deep the scene is, is your choice here. The camera sees 58° along the longer side.";
    const found = pointsOf(values[i], space, deep, values[i].rgb);
    if (!found) { cloud.clear(); return; }
    cloud.show(found);
  }

  /* --- pictures ------------------------------------------------------------------------------------------------------- */

  function choose(select, options, wanted) {
    select.replaceChildren(...options.map(([text, value]) => new Option(text, value)));
    select.value = options.some(([, value]) => value === wanted) ? wanted : options.length ? options[0][1] : "";
  }

  function showPictures() {
    const { pictures } = entry(open);
    for (const [side, image] of [["left", at("over")], ["right", at("under")]]) {
      const { text, address } = pictures.find(({ id }) => id === at(side).value);
      image.src = address;
      image.alt = `${side === "left" ? "Left" : "Right"}: ${text}`;
    }
  }

  function slide(percent) {
    split = Math.max(0, Math.min(100, percent));
    stage.style.setProperty("--split", `${split}%`);
    at("split").value = split;
  }

  const fit = () => { const image = at("under"); if (image.naturalWidth) at("comparison").style.setProperty("--aspect", image.naturalWidth / image.naturalHeight); };

  function told(pairs) {
    at("told").replaceChildren(...pairs.flatMap(([name, text]) => [["dt", name], ["dd", text]].map(([tag, content]) => Object.assign(document.createElement(tag), { textContent: content }))));
  }

  /* --- one image ------------------------------------------------------------------------------------------------------ */

  /* left, right: pictures to show, from here on, where an image has them. */
  function view(name, left, right) {
    if (left) chosen = { left, right };
    const shown = names(), { key, pictures, maps, note, ...of } = entry(name), options = pictures.map(({ id, text }) => [text, id]);
    const there = (id) => pictures.some((picture) => picture.id === id);
    open = name;
    values = null;
    delete viewer.dataset.ready;
    at("viewer-key").textContent = key;
    at("place").textContent = `${shown.indexOf(name) + 1} of ${shown.length}`;
    choose(at("left"), options, there(chosen.left) ? chosen.left : of.left);
    choose(at("right"), options, there(chosen.right) ? chosen.right : of.right);
    at("sides-note").textContent = note;
    for (const part of viewer.querySelectorAll(".sides, .slide, .divider, .sides-note")) part.hidden = pictures.length < 2;
    stage.hidden = !pictures.length;
    at("empty").hidden = pictures.length > 0;
    at("cloud-part").hidden = viewer.querySelector(".values").hidden = at("values-note").hidden = !maps.length;
    at("values").replaceChildren(...maps.map(rowOf));
    choose(at("cloud-map"), maps.map((map) => [map.name, map.name]), at("cloud-map").value || (maps.length ? maps[maps.length - 1].name : ""));
    told(of.told);
    showValues(null);
    if (pictures.length) showPictures();
    slide(pictures.length > 1 ? split : 100);
    if (!viewer.open) { cloud.reset(); viewer.showModal(); at("next").focus(); }
    viewer.scrollTop = 0;
    viewed(name);
    cloud.clear();
    if (maps.length) {
      load(name).then((content) => { if (open === name) { values = content; fit(); showValues(null); showCloud(); viewer.dataset.ready = name; } })
        .catch((error) => { if (open === name) at("values-note").textContent = `No values: ${error.message}.`; });
    } else viewer.dataset.ready = name;
  }

  function step(by) {
    const shown = names(), place = shown.indexOf(open);
    if (shown.length) view(shown[(place + by + shown.length) % shown.length]);
  }

  at("under").addEventListener("load", fit);
  viewer.addEventListener("close", () => {
    const name = open;
    cloud.clear();
    open = null;
    closed(name);
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.target.matches("select, input, canvas") && event.key.startsWith("Arrow")) return;
    const by = { n: 1, ArrowRight: 1, p: -1, ArrowLeft: -1 }[event.key];
    if (by && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.matches("select")) { event.preventDefault(); step(by); }
  });
  at("close").addEventListener("click", () => viewer.close());
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  for (const id of ["left", "right"]) at(id).addEventListener("change", () => { chosen = { left: at("left").value, right: at("right").value }; showPictures(); });
  at("split").addEventListener("input", () => slide(Number(at("split").value)));
  at("cloud-map").addEventListener("change", showCloud);
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
  stage.addEventListener("pointerleave", () => { if (open !== null) showValues(null); });

  return { view, opened: () => open };
}
