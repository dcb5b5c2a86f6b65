// What every page needs: the elements, dialogs, the menu of narrow screens, forms that are sent once, and CSRF for htmx.
import "./elements/iiot-arrival.js";
import "./elements/iiot-chart.js";
import "./elements/iiot-commands.js";
import "./elements/iiot-copy.js";
import "./elements/iiot-live.js";
import "./elements/iiot-rate.js";
import "./elements/iiot-replace-url.js";
import "./elements/iiot-state.js";
import "./elements/iiot-theme.js";
import "./elements/iiot-time.js";
import "./elements/iiot-values.js";
import { csrfToken } from "./api.js";

const sidebar = document.getElementById("sidebar");
const menu = document.querySelector("[data-toggle-nav]");

function showMenu(open) {
  sidebar.classList.toggle("open", open);
  menu.setAttribute("aria-expanded", String(open));
  if (open) sidebar.querySelector("a").focus();
  else if (sidebar.contains(document.activeElement)) menu.focus();
}

// A dialog that several buttons share is filled by the one that opens it.
function open({ dataset }) {
  const dialog = document.getElementById(dataset.open);
  if (dataset.action) {
    dialog.querySelector("form").action = dataset.action;
    dialog.querySelector("h2").textContent = dataset.title;
    dialog.querySelector("[autofocus]").value = dataset.value;
  }
  dialog?.showModal();
}

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-open]");
  if (opener) open(opener);
  if (event.target.closest("[data-close]") || event.target.tagName === "DIALOG") event.target.closest("dialog").close();
  if (menu?.contains(event.target)) showMenu(!sidebar.classList.contains("open"));
  else if (sidebar?.classList.contains("open") && !sidebar.contains(event.target)) showMenu(false);
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && sidebar?.classList.contains("open")) showMenu(false);
});

document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-once]")) return;
  // Disabled after the event, or the browser would leave the pressed button out of the form.
  setTimeout(() => { for (const button of event.target.querySelectorAll("button:not([type=button])")) button.disabled = true; });
});

// A page that comes back from the history cache must not keep its buttons disabled.
addEventListener("pageshow", (event) => {
  if (event.persisted) for (const button of document.querySelectorAll("[data-once] button")) button.disabled = false;
});

document.addEventListener("htmx:config:request", (event) => {
  event.detail.ctx.request.headers["X-CSRF-Token"] = csrfToken();
});

// A filter that was left empty stays out of the address.
document.addEventListener("htmx:config:request", (event) => {
  const { body } = event.detail.ctx.request;
  if (event.detail.ctx.request.method.toUpperCase() !== "GET" || !body?.entries) return;
  for (const [key, value] of [...body.entries()]) if (value === "") body.delete(key);
});

// The session ended while the page was open: sign in again, then come back here.
document.addEventListener("htmx:before:response", (event) => {
  if (event.detail.ctx.response.status === 401 || event.detail.ctx.response.raw.redirected) {
    event.preventDefault();
    location.reload();
  }
});

// Parts of a page that follow the server (hx-trigger="iiot-tick from:body") ask again every five seconds while somebody can see them.
setInterval(() => { if (!document.hidden) document.body.dispatchEvent(new Event("iiot-tick")); }, 5000);

// Tabs that do not fit begin with the current one in sight, and say on which side there are more.
for (const tabs of document.querySelectorAll(".tabs")) {
  const mark = () => {
    tabs.toggleAttribute("data-before", tabs.scrollLeft > 1);
    tabs.toggleAttribute("data-after", tabs.scrollLeft + tabs.clientWidth < tabs.scrollWidth - 1);
  };
  // Not scrollIntoView: the first Tab key would go on from there, past the link to the content.
  const current = tabs.querySelector("[aria-current]");
  if (current) tabs.scrollLeft += current.getBoundingClientRect().left - tabs.getBoundingClientRect().left - (tabs.clientWidth - current.offsetWidth) / 2;
  tabs.addEventListener("scroll", mark);
  new ResizeObserver(mark).observe(tabs);
}

for (const dialog of document.querySelectorAll("dialog[data-start-open]")) dialog.showModal();
