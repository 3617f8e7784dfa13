// One key a vote: 1 or A, 2 or B, T for a tie, X for both bad, S to skip, U to undo. Escape leaves the text box.
const KEYS = {1: 'vote-a', a: 'vote-a', 2: 'vote-b', b: 'vote-b', t: 'vote-tie', x: 'vote-bad', s: 'vote-skip', u: 'undo'};
const shownById = id => id && document.getElementById(id)?.offsetParent;
let byKey = false, votedAt = 0;  // how the vote came that is on its way, and when by key
document.addEventListener('keydown', event => {
  if (!isShortcut(event)) return;
  const key = KEYS[event.key.toLowerCase()];
  if (shownById(key)) {
    event.preventDefault();
    byKey = key !== 'undo';
    if (byKey) votedAt = Date.now();
    document.getElementById(key).click();
  } else if (key && Date.now() - votedAt < 1000) {
    event.preventDefault();  // a vote that was pressed twice is no message
  } else if (event.target === document.body && /^\S$/u.test(event.key) && !editor && !shownById('votes')) {
    box()?.focus({preventScroll: true});  // whoever types with nothing to vote on means the text box
  }
});

// After a choice one may type on. Not after a key: the next one may be U; nor where a keyboard would rise over the answers.
window.backToTyping = () => {
  if (!byKey && !matchMedia('(pointer: coarse)').matches) setTimeout(() => box()?.focus({preventScroll: true}), 99);
  byKey = false;
};

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

// The address names the talk, so that a reload, a second tab and the back button find it again; and what is typed belongs
// to its talk (a new chat to its tab), and outlives the page: Gradio loads it anew when the connection was lost.
let here, kept;
const box = () => document.querySelector('#box textarea');
const draft = () => `hustings-draft ${here}`, drafts = () => here ? localStorage : sessionStorage;
const keepDraft = words => { kept = words; words ? drafts().setItem(draft(), words) : drafts().removeItem(draft()); };
new MutationObserver(() => {
  const now = document.querySelector('#branches [data-here]')?.dataset.here;
  if (now === undefined || now === here || !box()) return;
  const address = `?talk=${encodeURIComponent(now || 'new')}`, early = here === undefined && box().value;
  if (location.search !== address) history[here ? 'pushState' : 'replaceState'](null, '', address);
  if (here !== undefined) keepDraft(box().value === sent ? '' : box().value);
  here = now;
  sent = undefined;
  if (!early) type(box(), drafts().getItem(draft()) ?? '');  // else it was typed before the page knew its talk
  kept = undefined;
}).observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ['data-here']});
addEventListener('popstate', () => location.reload());
const keepTyped = () => here !== undefined && box() && box().value !== kept && keepDraft(box().value);
setInterval(keepTyped, 300);
addEventListener('pagehide', keepTyped);

// What was sent is no draft any more, unless it was refused or changed since. Until the answer comes it stays in the box:
// sent twice, it would be said twice.
let sent, sentAt, refused;
const sending = words => { sent = words; sentAt = Date.now(); };
const onItsWay = () => sent && box().value === sent && Date.now() - sentAt < 5000;
const send = (event, words) => onItsWay() ? (event.preventDefault(), event.stopPropagation()) : sending(words);
document.addEventListener('keydown', event => {
  if (event.target === box() && event.key === 'Enter' && !event.shiftKey && !event.isComposing) send(event, box().value);
}, true);
document.addEventListener('click', event => {
  const example = event.target.closest('#history .example');
  if (example) send(event, example.textContent.trim());
  if (event.target.closest('#box .submit-button')) send(event, box().value);
  const gone = event.target.closest('[data-delete].sure')?.dataset.delete;  // its draft goes with it
  if (gone) localStorage.removeItem(`hustings-draft ${gone}`);
  if (gone && gone === here) sent = box()?.value;
}, true);
document.addEventListener('input', event => { if (event.target === box()) sent = undefined; });
new MutationObserver(() => {
  const now = document.querySelector('#note [data-refused]')?.dataset.refused;
  if (now && now !== refused) sent = undefined;
  refused = now;
}).observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ['data-refused']});

// What Gradio leaves unsaid to screen readers, and says too often: a history that grows by the word is read when it rests.
new MutationObserver(() => {
  document.querySelector('#box .submit-button')?.setAttribute('aria-label', 'Send');
  const history = document.getElementById('history');
  history?.querySelector('[role=log]')?.setAttribute('aria-live', history.classList.contains('writing') ? 'off' : 'polite');
}).observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ['class']});
