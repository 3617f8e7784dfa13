// One key a vote: 1 or A, 2 or B, T for a tie, X for both bad, S to skip, U to undo. Escape leaves the text box.
const KEYS = {1: 'vote-a', a: 'vote-a', 2: 'vote-b', b: 'vote-b', t: 'vote-tie', x: 'vote-bad', s: 'vote-skip', u: 'undo'};
document.addEventListener('keydown', event => {
  const button = isShortcut(event) && document.getElementById(KEYS[event.key.toLowerCase()]);
  if (!button || !button.offsetParent) return;
  event.preventDefault();
  button.click();
});

// The page follows what is being written, unless the reader has scrolled up.
let atEnd = true, seen = 0;
const end = () => document.documentElement.scrollHeight;
const near = () => innerHeight + scrollY >= end() - 90;
addEventListener('scroll', () => {  // only a reader scrolls up: text may have grown since the page went to its end
  atEnd = near() || (atEnd && scrollY >= seen);
  seen = scrollY;
}, {passive: true});
whenReady(() => new ResizeObserver(() => {
  atEnd ||= near();  // a new chat is short: its end comes without scrolling
  if (atEnd) scrollTo(0, end());
}).observe(document.body));

// On a narrow screen the side panel would cover the chat: there it starts closed, and closes on a choice.
const closeSide = () => innerWidth < 768 && document.querySelector('#side.open .toggle-button')?.click();
const side = new MutationObserver(() => {
  if (!document.querySelector('#side.open')) return;
  side.disconnect();
  setTimeout(closeSide);
});
side.observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ['class']});
document.addEventListener('click', event => event.target.closest('#new-chat, [data-talk]') && closeSide());

// Beside each turn that was said or answered in several ways: which of them this is, and the ways to the others.
const showBranches = () => document.querySelectorAll('#history .message-row').forEach((row, turn) => {
  const wanted = document.querySelector(`#branches [data-turn="${turn}"]`), shown = row.querySelector('.branch');
  if (shown?.outerHTML === wanted?.outerHTML) return;
  shown?.remove();
  if (wanted) row.append(wanted.cloneNode(true));
});
new MutationObserver(showBranches).observe(document.documentElement, {childList: true, subtree: true});
document.addEventListener('click', event => {
  const to = event.target.closest('#history [data-to]')?.dataset.to;
  if (to) document.querySelector(`#branches [data-to="${CSS.escape(to)}"]`)?.click();
});

// The address names the talk, so that a reload, a second tab and the back button find it again.
let here;
new MutationObserver(() => {
  const now = document.querySelector('#branches [data-here]')?.dataset.here;
  if (!now || now === here) return;  // a new chat has no address before its first words
  const address = `?talk=${encodeURIComponent(now)}`;
  if (location.search !== address) history[here === undefined ? 'replaceState' : 'pushState'](null, '', address);
  here = now;
}).observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ['data-here']});
addEventListener('popstate', () => location.reload());

// What is typed outlives the page, by talk: Gradio loads it anew when the connection was lost.
let typed = null, written = null;
setInterval(() => {
  const box = document.querySelector('#box textarea'), talk = `hustings-draft ${location.search}`;
  if (!box) return;
  if (talk !== written) [typed, written] = [null, talk];
  if (typed === null) {
    const kept = localStorage.getItem(talk);
    if (kept && !box.value) {
      box.value = kept;
      box.dispatchEvent(new Event('input', {bubbles: true}));
    }
  } else if (box.value !== typed) box.value ? localStorage.setItem(talk, box.value) : localStorage.removeItem(talk);
  typed = box.value;
}, 400);

// What Gradio leaves unsaid to screen readers, and says too often: a history that grows by the word is read when it rests.
new MutationObserver(() => {
  document.querySelector('#box .submit-button')?.setAttribute('aria-label', 'Send');
  const history = document.getElementById('history');
  history?.querySelector('[role=log]')?.setAttribute('aria-live', history.classList.contains('writing') ? 'off' : 'polite');
}).observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ['class']});
