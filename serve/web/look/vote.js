// Ranks live here until they are handed in: 1 is best, equal ranks are a tie.
const ranking = new Map();
let before = '';  // the comparison that they are of
const rankers = () => [...document.querySelectorAll('.ranker')].filter(r => r.offsetParent);
const ORDINAL = ['', '1st', '2nd', '3rd', '4th', '5th', '6th'];
window.ranks = () => Object.fromEntries(ranking);

const draw = () => {
  for (const ranker of rankers()) {
    const rank = ranking.get(ranker.dataset.place);
    const tied = rank && [...ranking.values()].filter(other => other === rank).length > 1;
    const told = ranker.querySelector('output'), words = rank ? ORDINAL[rank] + (tied ? ', a tie' : '') : 'not ranked';
    if (told.textContent !== words) told.textContent = words;  // or the observer below would never rest
    ranker.classList.toggle('ranked', Boolean(rank));
    ranker.setAttribute('aria-label', `Answer ${'ABCDEF'[ranker.dataset.place]}, ${words}`);
  }
  const button = document.getElementById('hand-in'), left = rankers().filter(ranker => !ranking.has(ranker.dataset.place)).length;
  if (!button) return;
  button.disabled = left > 0;
  const words = left ? `${left} still to rank` : 'Hand in';
  if (button.textContent !== words) button.textContent = words;
};
const give = (ranker, rank) => {
  ranking.set(ranker.dataset.place, Math.max(1, Math.min(rankers().length, rank)));
  sessionStorage.setItem('hustings-ranks', JSON.stringify([before, [...ranking]]));  // for when the page is loaded anew
  draw();
};
const move = (ranker, by) => give(ranker, (ranking.get(ranker.dataset.place) ?? (by < 0 ? 2 : rankers().length - 1)) + by);

document.addEventListener('click', event => {
  const button = event.target.closest('[data-move]');
  if (button) move(button.closest('.ranker'), Number(button.dataset.move));
});

const CLICKS = {x: '[data-verdict=both_bad]', s: '[data-verdict=skip]', u: '#undo', e: '#write'};
document.addEventListener('keydown', event => {
  if (!isShortcut(event)) return;
  const at = event.target, key = event.key.toLowerCase(), here = at.closest('.ranker'), all = rankers();
  if (key === 'j' || key === 'k') {
    const step = key === 'j' ? 1 : -1, place = here ? all.indexOf(here) + step : step > 0 ? 0 : all.length - 1;
    all[(place + all.length) % all.length]?.focus();
  } else if (here && /^[1-6]$/.test(key)) give(here, Number(key));
  else if (here && (key === 'arrowup' || key === 'arrowdown')) move(here, key === 'arrowup' ? -1 : 1);
  else if (key === 'enter' && !at.closest('button, a, summary')) {
    all.find(ranker => !ranking.has(ranker.dataset.place))?.focus();  // it says "not ranked"
    document.getElementById('hand-in')?.click();
  }
  else if (CLICKS[key]) document.querySelector(CLICKS[key])?.click();
  else return;
  event.preventDefault();
});

// Another comparison: nothing is ranked yet, and the first answer can be.
let fresh = false;
new MutationObserver(() => {
  const now = document.querySelector('#asked .asked')?.dataset.comparison ?? '';
  if (now !== before) {
    before = now;
    fresh = true;
    ranking.clear();
    const [kept, ranks] = JSON.parse(sessionStorage.getItem('hustings-ranks') ?? '[]');
    if (kept === now) ranks.forEach(([place, rank]) => ranking.set(place, rank));
  }
  draw();
  if (!fresh || !rankers().length) return;
  fresh = false;
  if (!document.activeElement?.closest('a, #editor')) rankers()[0].focus({preventScroll: true});
}).observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ['class']});
