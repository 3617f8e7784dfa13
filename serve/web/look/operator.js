// A page whose session is over says so: of what its events are refused, Gradio tells nothing.
const over = document.createElement('p'), reach = window.fetch;
Object.assign(over, {id: 'session-over', className: 'note problem', role: 'alert'});
whenReady(() => document.body.append(over));
window.fetch = async (...call) => {
  const answer = await reach(...call), refused = answer.status === 401;
  if (!/api\//.test(answer.url)) return answer;  // fonts and pictures know no session
  if (refused !== !!over.innerHTML) over.innerHTML = refused ? '<span>Your session is over. <a href="/login">Log in again</a>.</span>' : '';
  return answer;
};

// Ends the operator's session; the chat stays.
document.addEventListener('click', async event => {
  const button = event.target.closest('[data-log-out]');
  if (!button) return;
  const answer = await fetch('/api/logout', {method: 'POST'}).catch(() => null);
  if (answer?.ok) location.assign('/login');
  else button.textContent = 'You are still logged in. Try again.';
});

// A dataset goes to the API as it is, once: the page takes no files.
const count = (number, what) => `${number} ${what}${number === 1 ? '' : 's'}`;
document.addEventListener('submit', async event => {
  const form = event.target;
  if (form.id !== 'import') return;
  event.preventDefault();
  const told = document.getElementById('imported'), button = form.querySelector('button');
  const given = new FormData(form), file = given.get('file'), limit = Number(form.dataset.limit);
  if (button.disabled) return;
  if (file.size > limit) {
    told.textContent = `Nothing was imported: the file has more than ${limit >> 20} MB. Import it in parts.`;
    return;
  }
  told.textContent = 'Importing …';
  button.disabled = true;
  const address = `/api/import?format=${given.get('format')}&as=${given.get('as')}`;
  const answer = await fetch(address, {method: 'POST', body: file}).catch(() => null);
  const said = await answer?.json().catch(() => null);
  button.disabled = false;
  told.textContent = !said ? 'The connection was lost. It may have been imported: look at the log before you try again.'
    : answer.ok ? `Imported: ${count(said.votes, 'vote')}, ${count(said.demonstrations, 'demonstration')}, ${count(said.prompts, 'prompt')}; ${count(said.skipped, 'row')} left out.`
    : `Nothing was imported: ${said.error?.message ?? answer.status}`;
  form.dispatchEvent(new Event('imported', {bubbles: true}));  // the lists and the log are drawn anew
});
