// One key a vote: 1 or A, 2 or B, T for a tie, X for both bad, S to skip. Escape leaves the text box.
const KEYS = {1: 'vote-a', a: 'vote-a', 2: 'vote-b', b: 'vote-b', t: 'vote-tie', x: 'vote-bad', s: 'vote-skip'};
const WRITTEN_IN = 'textarea, select, [contenteditable="true"], input:not([type=checkbox], [type=radio])';
document.addEventListener('keydown', event => {
  const at = event.target;
  if (event.key === 'Escape' && at.closest(WRITTEN_IN)) return at.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || at.closest(WRITTEN_IN)) return;
  const button = document.getElementById(KEYS[event.key.toLowerCase()]);
  if (!button || !button.offsetParent || document.body.classList.contains('no-shortcuts')) return;
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
const follow = () => new ResizeObserver(() => {
  atEnd ||= near();  // a new chat is short: its end comes without scrolling
  if (atEnd) scrollTo(0, end());
}).observe(document.body);
document.readyState === 'loading' ? addEventListener('DOMContentLoaded', follow) : follow();  // Gradio may bring this late

// On a narrow screen the side panel would cover the chat: there it starts closed, and closes on a choice.
const closeSide = () => innerWidth < 768 && document.querySelector('#side.open .toggle-button')?.click();
const side = new MutationObserver(() => {
  if (!document.querySelector('#side.open')) return;
  side.disconnect();
  setTimeout(closeSide);
});
side.observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ['class']});
document.addEventListener('click', event => event.target.closest('#new-chat, [data-talk]') && closeSide());

// What Gradio leaves unsaid to screen readers, and says too often: a history that grows by the word is read when it rests.
new MutationObserver(() => {
  document.querySelector('#box .submit-button')?.setAttribute('aria-label', 'Send');
  const history = document.getElementById('history');
  history?.querySelector('[role=log]')?.setAttribute('aria-live', history.classList.contains('writing') ? 'off' : 'polite');
}).observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ['class']});
