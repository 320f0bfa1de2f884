/* The report's page: a picture opens large. Text from a run is only ever set as text. */

(() => {
  const documents = JSON.parse(document.getElementById("documents").textContent), names = Object.keys(documents);
  const examples = new Map([...document.querySelectorAll(".example")].map((example) => [example.dataset.name, example]));
  const address = (name, id) => [...examples.get(name).querySelectorAll(".tile")].find((tile) => tile.dataset.id === id).querySelector("img").src;
  let from = null;

  const viewer = makeViewer({
    entry(name) {
      const entry = documents[name], pictures = entry.pictures.map(({ id, text }) => ({ id, text, address: address(name, id) }));
      const note = "In maps red is near, and what has no value is grey. In differences red is nearer and blue farther than the first map, once scale and shift are fitted; white is alike, and the full colour a quarter of its range.";
      return { ...entry, pictures, note };
    },
    values: async (name) => ({ photo: address(name, documents[name].left), labels: documents[name].maps }),
    names: () => names,
    closed: () => { if (from) from.focus(); },
  });

  document.querySelector("main").addEventListener("click", (event) => {
    const button = event.target.closest(".tile, .compare");
    if (!button) return;
    from = button;
    const { name } = button.closest(".example").dataset, { left, right, compared } = documents[name];
    if (button.matches(".compare")) viewer.view(name, ...compared);
    else viewer.view(name, left, button.dataset.id === left ? right : button.dataset.id);
  });
})();
