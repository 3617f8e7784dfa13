// Gradio may bring this script when the page is there already.
const whenReady = start => document.readyState === 'loading' ? addEventListener('DOMContentLoaded', start) : start();

// Light or dark as the system has it, unless this browser was told otherwise.
const LOOK = 'hustings-look', system = matchMedia('(prefers-color-scheme: dark)');
const wear = () => document.body.classList.toggle('dark', (localStorage.getItem(LOOK) ?? (system.matches ? 'dark' : 'light')) === 'dark');
whenReady(() => {
  wear();
  new MutationObserver(wear).observe(document.body, {attributeFilter: ['class']});  // Gradio follows the system alone
});
document.addEventListener('click', event => {
  if (!event.target.closest('.look')) return;
  const dark = !document.body.classList.contains('dark');
  dark === system.matches ? localStorage.removeItem(LOOK) : localStorage.setItem(LOOK, dark ? 'dark' : 'light');
  wear();
});

// Whether a key is meant as a shortcut. Escape leaves what is being written.
const WRITTEN_IN = 'textarea, select, [contenteditable="true"], input:not([type=checkbox], [type=radio])';
const isShortcut = event => {
  const at = event.target, writing = at.closest(WRITTEN_IN);
  if (event.key === 'Escape' && writing) at.blur();
  return !(writing || event.ctrlKey || event.metaKey || event.altKey || event.repeat || document.body.classList.contains('no-shortcuts'));
};

// Times are sent in UTC and shown in the browser's own zone.
const showTimes = () => document.querySelectorAll('time[datetime]:not([data-shown])').forEach(time => {
  const when = new Date(time.dateTime), today = when.toDateString() === new Date().toDateString();
  const clock = {hour: '2-digit', minute: '2-digit'};
  time.textContent = when.toLocaleString([], today ? clock : {day: 'numeric', month: 'short', ...clock});
  time.title = when.toLocaleString();
  time.dataset.shown = '';
});
new MutationObserver(showTimes).observe(document.documentElement, {childList: true, subtree: true});

// What a page has to say is read out once, by regions that are there from the beginning.
const regions = Object.fromEntries([['status', 'polite'], ['alert', 'assertive']].map(([role, live]) => {
  const region = document.createElement('div');
  Object.assign(region, {id: `said-${role}`, className: 'unseen', role, ariaLive: live});
  return [role, region];
}));
let said = '';
whenReady(() => {
  document.body.append(...Object.values(regions));
  new MutationObserver(() => {
    const notes = [...document.querySelectorAll('#note .note')];
    const now = notes.map(note => note.textContent).join(' ');
    if (now === said) return;
    said = now;
    const role = notes.some(note => note.classList.contains('problem')) ? 'alert' : 'status';
    regions[role === 'alert' ? 'status' : 'alert'].textContent = '';
    regions[role].textContent = now;
  }).observe(document.body, {childList: true, subtree: true, characterData: true});
});

// Put words into a field as if they were typed: Gradio listens.
const type = (field, words) => {
  if (field.value === words) return;
  field.value = words;
  field.dispatchEvent(new Event('input', {bubbles: true}));
};

// The editor of a better answer: it takes the focus, and what is in it outlives the page until it is kept or left.
let editor = null, edited;
const answerAt = () => document.querySelector('#asked [data-comparison]')?.dataset.comparison ?? document.querySelector('#branches [data-leaf]')?.dataset.leaf;
new MutationObserver(() => {
  const now = document.querySelector('#words textarea');
  if (now === editor) return;
  if (!now) sessionStorage.removeItem(edited);  // it was kept, or left
  if (now && !editor) {
    edited = `hustings-words ${answerAt()}`;
    setTimeout(() => {  // the answer to be bettered comes a moment later
      const written = now.isConnected && sessionStorage.getItem(edited);
      if (written) type(now, written);
      now.focus();
    }, 150);
  }
  editor = now;
}).observe(document.documentElement, {childList: true, subtree: true});
document.addEventListener('input', event => event.target === editor && sessionStorage.setItem(edited, editor.value));
