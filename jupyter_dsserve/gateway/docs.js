"use strict";
const search = document.querySelector("input");
const told = document.getElementById("told");
const all = [...document.querySelectorAll("details")];
const texts = new Map(all.map(each => [each, each.firstElementChild.textContent.toLowerCase().replace(/\s+/g, " ")]));

function look() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let num = 0;
  for (const each of all) {
    each.hidden = !words.every(word => texts.get(each).includes(word));
    num += each.hidden ? 0 : 1;
  }
  for (const section of document.querySelectorAll("section")) {
    section.hidden = !section.querySelector("details:not([hidden])");
  }
  told.textContent = words.length ? `${num} found` : "";
}

// A link to something that is closed, or that the search hides, opens it.
function open() {
  const there = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!there || there.tagName !== "DETAILS") return;
  if (there.hidden) { search.value = ""; look(); }
  there.open = true;
  there.scrollIntoView();
}

document.querySelector(".search").hidden = false;
document.getElementById("url").textContent = `URL=${location.href.replace(/\/docs\/?([?#].*)?$/, "")}`;
search.addEventListener("input", look);
addEventListener("hashchange", open);
addEventListener("keydown", event => {
  if (event.key === "/" && document.activeElement !== search && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    search.focus();
  } else if (event.key === "Escape" && document.activeElement === search) {
    search.value = "";
    look();
  }
});
look();
open();
