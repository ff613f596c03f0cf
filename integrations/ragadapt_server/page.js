const $ = (id) => document.getElementById(id);

// Everything that comes from a document goes through here, as text.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

async function call(path, body) {
  for (;;) {
    const headers = { "Content-Type": "application/json" };
    const token = sessionStorage.getItem("token");
    if (token) headers.Authorization = "Bearer " + token;
    const answer = await fetch(path, body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) });
    if (answer.status === 401) { await askToken(); continue; }
    const value = await answer.json();
    if (!answer.ok) throw new Error(value.error ? value.error.message : answer.statusText);
    return value;
  }
}

let asking = null;
function askToken() {
  asking ??= new Promise((resolve) => {
    $("ask").showModal();
    $("ask").addEventListener("close", () => {
      sessionStorage.setItem("token", $("token").value.trim());
      $("token").value = "";
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}

function say(text, bad = false) { $("told").textContent = text; $("told").classList.toggle("bad", bad); }

function words(query) {
  const found = query.toLocaleLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  const stems = [...new Set(found.filter((word) => word.length > 2).map((word) => word.length > 5 ? word.slice(0, -2) : word))];
  return stems.length ? new RegExp("(?<![\\p{L}\\p{N}])(?:" + stems.join("|") + ")[\\p{L}\\p{N}]*", "giu") : null;
}

function marked(text, pattern) {
  if (!pattern) return [text];
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(pattern)) {
    parts.push(text.slice(at, match.index), element("mark", {}, match[0]));
    at = match.index + match[0].length;
  }
  return [...parts, text.slice(at)];
}

function placeOf(passage) { return passage.heading_path.filter(Boolean).join(" › ") || passage.source || passage.document_id; }

function sourceOf(passage) {
  const where = ["page", "slide", "sheet", "row", "cell"].filter((name) => name in passage.metadata).map((name) => name + " " + passage.metadata[name]);
  return [passage.source || passage.document_id, ...where].join(", ");
}
