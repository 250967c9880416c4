// The controls' state is the address behind `#`: what differs from the spec. Each move asks for the plan at it; an older answer is dropped.
// What came nearest takes longer to say: it is asked for once the plan is there and the hand rests.
const moves = document.querySelector(".moves"), plan = document.getElementById("plan");
const inputs = [...moves.querySelectorAll("input, select")];
const steps = (input) => [...input.list.options].map((option) => option.dataset.value);
const valueOf = (input) => input.list ? steps(input)[input.value] : input.value;
const own = new Map(inputs.map((input) => [input.name, valueOf(input)]));

const stated = () => new URLSearchParams(inputs.map((input) => [input.name, valueOf(input)]).filter(([name, value]) => value !== own.get(name)));
function put(parameters) {
  for (const input of inputs) {
    const value = parameters.get(input.name) ?? own.get(input.name);
    const place = input.list ? steps(input).indexOf(value) : value;
    if (place !== -1) input.value = place;
  }
}

const REST_MS = 150;
let asked = null, resting = 0;
async function near(state, signal) {
  try {
    const answer = await fetch(`/others?${state}`, { signal });
    const said = await answer.text();
    if (answer.ok && plan.dataset.state === state) document.getElementById("others").innerHTML = said;
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
}
async function follow() {
  for (const input of inputs) if (input.list) moves.querySelector(`output[for=${input.name}]`).textContent = input.list.options[input.value].label;
  const state = stated().toString(), began = performance.now();
  history.replaceState(null, "", state ? `#${state}` : location.pathname);
  clearTimeout(resting);
  asked?.abort();
  asked = new AbortController();
  const { signal } = asked;
  plan.classList.add("waits");
  try {
    const answer = await fetch(`/plan?${state}`, { signal });
    const said = await answer.text();
    if (answer.ok) plan.innerHTML = said; else plan.textContent = said;
    hideTip();
    rove(plan);
    plan.classList.remove("waits");
    const took = Math.round(performance.now() - began);
    plan.dataset.state = state;
    plan.dataset.took = took;
    document.getElementById("took").textContent = `This answer took ${took} ms.`;
    if (answer.ok) resting = setTimeout(near, REST_MS, state, signal);
  } catch (error) {
    if (error.name !== "AbortError") plan.textContent = "The server has ended: start optimize serve-ui again.";
  }
}
moves.addEventListener("input", follow);
moves.addEventListener("submit", (event) => event.preventDefault());
moves.addEventListener("reset", (event) => { event.preventDefault(); put(new URLSearchParams()); follow(); });
addEventListener("hashchange", () => { put(new URLSearchParams(location.hash.slice(1))); follow(); });
put(new URLSearchParams(location.hash.slice(1)));
follow();
