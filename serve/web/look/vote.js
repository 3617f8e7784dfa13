// Ranks live here until they are handed in: 1 is best, equal ranks are a tie.
const ranking = new Map();
let before = '';  // the comparison that they are of
const rankers = () => [...document.querySelectorAll('.ranker')].filter(r => r.offsetParent);
const unranked = () => rankers().filter(ranker => !ranking.has(ranker.dataset.place));
const ORDINAL = ['', '1st', '2nd', '3rd', '4th', '5th', '6th'];

// Place → rank. Where one answer is left, it has the first rank that is free.
const allRanks = () => {
  const ranks = new Map(ranking), left = unranked(), taken = [...ranking.values()];
  if (left.length === 1) ranks.set(left[0].dataset.place, ORDINAL.findIndex((_, rank) => rank && !taken.includes(rank)));
  return ranks;
};
window.ranks = () => Object.fromEntries(allRanks());
// What a better answer starts from: the one ranked first, or where the focus is.
window.startFrom = () => {
  const [best] = [...ranking].sort(([, one], [, other]) => one - other);
  return best?.[0] ?? document.activeElement?.closest('.ranker')?.dataset.place ?? '';
};

const draw = () => {
  const ranks = allRanks(), all = rankers();
  for (const ranker of all) {
    const rank = ranks.get(ranker.dataset.place);
    const tied = rank && [...ranks.values()].filter(other => other === rank).length > 1;
    const told = ranker.querySelector('output'), words = rank ? ORDINAL[rank] + (tied ? ', a tie' : '') : 'not ranked';
    if (told.textContent !== words) told.textContent = words;  // or the observer below would never rest
    ranker.classList.toggle('ranked', Boolean(rank));
    ranker.setAttribute('aria-label', `${ranker.dataset.name}, ${words}`);
    ranker.querySelectorAll('[data-rank]').forEach(button => button.setAttribute('aria-pressed', Number(button.dataset.rank) === rank));
  }
  const button = document.getElementById('hand-in'), left = all.length - ranks.size;
  if (!button) return;
  button.disabled = left > 0 || !all.length;
  const words = left > 0 ? `${left} still to rank` : 'Hand in';
  if (button.textContent !== words) button.textContent = words;
};
const give = (ranker, rank) => {
  ranking.set(ranker.dataset.place, Math.max(1, Math.min(rankers().length, rank)));
  sessionStorage.setItem('hustings-ranks', JSON.stringify([before, [...ranking]]));  // for when the page is loaded anew
  draw();
  const left = unranked(), heard = document.getElementById('said-status');
  heard.textContent = [ranker, ...(left.length === 1 ? left : [])].map(told => told.ariaLabel).join('. ');
};
const move = (ranker, by) => give(ranker, (allRanks().get(ranker.dataset.place) ?? (by < 0 ? 2 : rankers().length - 1)) + by);

document.addEventListener('click', event => {
  const button = event.target.closest('[data-rank]');
  if (button) give(button.closest('.ranker'), Number(button.dataset.rank));
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
  else if (key === 'enter' && !at.closest('button, a, summary, input')) {
    const left = unranked();
    left.length > 1 ? left[0].focus() : document.getElementById('hand-in')?.click();  // it says "not ranked"
  } else if (CLICKS[key]) {
    const button = document.querySelector(CLICKS[key]);
    if (button?.offsetParent) button.click();  // style hides what there is nothing for
  } else return;
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
}).observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ['data-comparison']});
