/* The gallery's page. Text from a run is only ever set as text. Values come in a script of each image, since a page on a disk may
   load scripts and pictures but read neither. */

const gallery = (() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const documents = read("documents");
  const at = (id) => document.getElementById(id);
  const cards = new Map([...document.querySelectorAll(".image")].map((card) => [card.dataset.name, card]));
  const waiting = new Map();
  let shown = [...cards.keys()];

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

  /* --- the large view --------------------------------------------------------------------------------------------- */

  function values(name) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `images/${name}/labels.js`;
      script.onload = () => resolve(waiting.get(script.src));
      script.onerror = () => reject(new Error("the values cannot be read"));
      gallery.labels = (content) => waiting.set(document.currentScript.src, content);
      document.head.append(script);
    });
  }

  function pictures(entry) {
    const picture = (text, file) => ({ id: file, text, address: `images/${entry.name}/${file}` });
    const found = entry.photo ? [picture("photograph", entry.photo)] : [];
    for (const teacher of entry.teachers) {
      found.push(picture(`${teacher.name}: label`, teacher.label));
      if (teacher.close_ups) found.push(picture(`${teacher.name}: ${teacher.num_close_ups} close-ups, stitched`, teacher.close_ups));
    }
    for (const teacher of entry.teachers) if (teacher.difference) found.push(picture(teacher.apart, teacher.difference));
    return found;
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
    return found;
  }

  const viewer = makeViewer({
    entry(name) {
      const entry = documents[name], { key, teachers } = entry;
      const last = teachers.length ? teachers[teachers.length - 1].label : "";
      const note = "In labels red is near, and what has no label is grey. In differences red is nearer and blue farther than the first teacher, once scale and shift are fitted; white is alike, and the full colour a quarter of its range.";
      return { key, pictures: pictures(entry), left: "photo.jpg", right: last, maps: teachers, told: told(entry), note };
    },
    values,
    names: () => shown,
    viewed: (name) => history.replaceState(null, "", `#${name}`),
    closed(name) {
      history.replaceState(null, "", location.pathname + location.search);
      const card = cards.get(name);
      if (card) { card.scrollIntoView({ block: "nearest" }); card.querySelector("a").focus(); }
    },
  });

  at("images").addEventListener("click", (event) => {
    const card = event.target.closest(".image");
    if (!card || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    viewer.view(card.dataset.name);
  });

  function begin() {
    const wide = matchMedia("(min-width: 901px)"), adapt = () => { at("panel").open = wide.matches; };
    at("panel").hidden = false;
    adapt();
    wide.addEventListener("change", adapt);
    update();
    const name = location.hash.slice(1);
    if (cards.has(name)) viewer.view(name);
  }
  addEventListener("hashchange", () => { const name = location.hash.slice(1); if (cards.has(name) && name !== viewer.opened()) viewer.view(name); });
  document.readyState === "loading" ? addEventListener("DOMContentLoaded", begin) : setTimeout(begin);
  return {};
})();
